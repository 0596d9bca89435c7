//! What all cores of a store share, and what they say to each other.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::catalog::{Answer, Books, Read, Write};
use super::local::LocalStore;
use super::name::Name;
use super::namespace::Namespace;
use super::object::Object;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Receiver, Sender, channel};

/// What all cores of a store share.
pub struct Shared {
    namespace: Arc<Namespace>,
    books: Arc<Books>,
    questions: Sender<Read>,
    news: Sender<Write>,
    next_generation: AtomicU64,
    peers: Vec<Sender<Message>>,
    stopping: AtomicBool,
    started: Instant,
    may_splice: bool,
}

/// What cores share from the beginning.
pub(super) struct Parts {
    pub cores: usize,
    pub namespace: Arc<Namespace>,
    pub books: Arc<Books>,
    /// Where the catalog's threads listen.
    pub questions: Sender<Read>,
    pub news: Sender<Write>,
    pub next_generation: u64,
    pub may_splice: bool,
    /// The time, by the cores' clock.
    pub started: Instant,
}

/// Something to run on a core.
type Call = Box<dyn FnOnce(&Rc<LocalStore>) + Send>;

/// What one core says to another, or a foreign thread to a core.
pub(super) enum Message {
    /// This generation has grown or ended.
    Grown(u64),
    /// This generation, which was live, is deleted.
    Deleted(u64),
    /// This name has come into being.
    Begun(Name),
    /// This name is to be forgotten by the cache.
    Forget(Name),
    /// The deletion of these objects is to be logged, on behalf of this request; then who asked is told. So many cores
    /// had no room for it.
    Delete(Context, Vec<Arc<Object>>, Sender<Result<()>>, usize),
    /// These objects were superseded: their deletion is to be logged when that is possible.
    Supersede(Vec<Arc<Object>>),
    /// Something to run here.
    Call(Call),
}

impl Shared {
    /// What cores share, and for each core its messages.
    pub(super) fn new(parts: Parts) -> (Arc<Shared>, Vec<Receiver<Message>>) {
        let (peers, receivers) = (0..parts.cores).map(|_| channel()).unzip();
        let shared = Shared {
            namespace: parts.namespace,
            books: parts.books,
            questions: parts.questions,
            news: parts.news,
            next_generation: AtomicU64::new(parts.next_generation),
            peers,
            stopping: AtomicBool::new(false),
            started: parts.started,
            may_splice: parts.may_splice,
        };
        (Arc::new(shared), receivers)
    }

    /// Runs something on a core; from any thread. It is dropped unrun where the core is gone.
    pub fn call(&self, core: usize, call: impl FnOnce(&Rc<LocalStore>) + Send + 'static) {
        self.send(core, Message::Call(Box::new(call)));
    }

    pub(super) fn send(&self, core: usize, message: Message) {
        self.peers[core].send(message);
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    /// How long after the start of the store this was.
    pub(super) fn since_start(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.started)
    }

    /// Whether bytes may go from the segment files to sockets as pages of the page cache.
    pub fn may_splice(&self) -> bool {
        self.may_splice
    }

    /// Whether the store is to come to an end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The names with news.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Why the catalog cannot be written now, if so.
    pub fn catalog_trouble(&self) -> Option<Error> {
        self.books.trouble()
    }

    pub(super) fn take_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the catalog something.
    pub(super) fn enter(&self, news: Write) {
        self.news.send(news);
    }

    /// Asks the catalog something. Dropping the future leaves the question to be answered to nobody.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`].
    pub(super) async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Read) -> Result<T> {
        let (answer, mut answers) = channel();
        self.questions.send(question(answer));
        answers.receive().await.unwrap_or_else(|| Err(Error::new(Kind::Closed, "the store has been stopped")))
    }

    /// Has what this name's generations have superseded deleted, on a core.
    pub(super) fn settle(&self, name: &Name, core: usize) {
        let superseded = self.namespace.settle(name);
        if !superseded.is_empty() {
            self.send(core, Message::Supersede(superseded));
        }
    }

    /// Takes a generation from its name that may not even have begun, and has it deleted, on a core.
    pub(super) fn give_up(&self, object: &Arc<Object>, core: usize) {
        self.namespace.give_up(object);
        self.send(core, Message::Supersede(vec![object.clone()]));
    }

    /// Tells all cores to come to an end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.books.begin_to_end();
        for core in 0..self.cores() {
            self.call(core, |local| local.stop());
        }
    }

    /// Has the catalog's loops end, when no core tells it anything any more.
    pub(crate) fn end_catalog(&self) {
        self.questions.send(Read::Close);
        self.news.send(Write::Close);
    }

    /// Ends the catalog's threads. What it was told is on stable storage when they have ended, in the catalog or, where
    /// that cannot be written, in the segments only; who still has a handle of the store is answered that it is closed.
    pub(super) fn close_catalog(&self, threads: &mut Vec<JoinHandle<()>>) -> Result<()> {
        self.end_catalog();
        let mut outcome = Ok(());
        for thread in threads.drain(..) {
            let panicked = |_| Error::new(Kind::Closed, "a thread of the catalog ended by a panic");
            outcome = outcome.and(thread.join().map_err(panicked));
        }
        self.books.close();
        outcome
    }
}
