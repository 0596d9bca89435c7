//! The server: its listeners, its part on every core, and its end.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use tracing::Instrument;

use super::connection::{self, Connection, Input};
use super::reply::DateText;
use crate::config::Config;
use crate::context::{Canceller, Context, Peer, RequestId};
use crate::error::{Error, Kind, Result};
use crate::ring::Descriptor;
use crate::runtime::{Either, Listener, Pipe, Receiver, Sender, Stream, TaskGroup, channel, race, yield_now};
use crate::store::{Engine, LocalStore, Registry, Store};

/// How much a pipe between file and socket holds, in bytes.
const PIPE_CAPACITY: usize = 256 << 10;
/// Pipes and buffers that a core keeps for the next transfer.
const KEPT: usize = 32;
/// How often an address that is taken is asked for again, and how long to wait before that.
const BIND_ATTEMPTS: u32 = 20;
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// How long to wait before accepting again when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server: an engine, and HTTP in front of it.
pub struct Server {
    engine: Engine,
    data_address: SocketAddr,
    admin_address: SocketAddr,
}

/// Which of the two listeners a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Data,
    Admin,
}

/// A connection on its way to a core.
pub(super) struct Arrival {
    door: Door,
    descriptor: Arc<Descriptor>,
    /// What another core has received of it and not used.
    input: Input,
}

/// What the cores share.
pub(super) struct Shared {
    pub config: Config,
    pub started: SystemTime,
    pub draining: AtomicBool,
    /// What everything that is served runs under: the process.
    process: (Context, Canceller),
    arrivals: Vec<Sender<Arrival>>,
    /// How many connections each core has, of both listeners.
    open: Vec<AtomicUsize>,
    /// How many of them are the data listener's.
    data_open: AtomicUsize,
}

impl Arrival {
    /// A connection of which nothing was received yet.
    pub fn new(door: Door, descriptor: Descriptor) -> Arrival {
        Arrival { door, descriptor: Arc::new(descriptor), input: Input::default() }
    }

    /// The socket, for whoever is to see when it is closed.
    #[cfg(test)]
    pub fn socket(&self) -> std::sync::Weak<Descriptor> {
        Arc::downgrade(&self.descriptor)
    }

    /// A connection that another core has served until now.
    pub fn moved(door: Door, stream: &Stream, input: Input) -> Arrival {
        Arrival { door, descriptor: stream.shared_descriptor(), input }
    }
}

impl Shared {
    /// What the cores share, and for each of them where its connections arrive.
    pub fn new(config: Config) -> (Arc<Shared>, Vec<Receiver<Arrival>>) {
        let (arrivals, receivers): (Vec<_>, Vec<_>) = (0..config.cores).map(|_| channel()).unzip();
        let shared = Arc::new(Shared {
            open: (0..config.cores).map(|_| AtomicUsize::new(0)).collect(),
            data_open: AtomicUsize::new(0),
            started: SystemTime::now(),
            draining: AtomicBool::new(false),
            process: Context::background().with_cancel(),
            arrivals,
            config,
        });
        (shared, receivers)
    }

    /// Connections of the data listener, on all cores.
    fn open_connections(&self) -> usize {
        self.data_open.load(Ordering::SeqCst)
    }
}

impl Server {
    /// Takes the addresses, starts the engine, and serves.
    ///
    /// # Errors
    /// [`Kind::AddressInUse`]; what [`Engine::start_with`] says.
    pub fn start(config: Config) -> Result<Server> {
        config.check()?;
        let bind = |address: SocketAddr| {
            bind_patiently(address).map_err(|errno| {
                let cure = match errno {
                    Errno::ADDRINUSE => "another program listens there; stop it, or choose another address",
                    Errno::ACCESS => "ports below 1024 need the capability CAP_NET_BIND_SERVICE",
                    Errno::ADDRNOTAVAIL => "it is not an address of this host",
                    _ => "choose another address",
                };
                Error::new(Kind::AddressInUse, format!("cannot listen on {address}: {errno}: {cure}"))
            })
        };
        let (data, admin) = (bind(config.listen)?, bind(config.admin)?);
        let (data_address, admin_address) = (data.address(), admin.address());
        let (shared, receivers) = Shared::new(config.clone());
        // Each core takes its receiver, core 0 the listeners too, once.
        let receivers: Arc<Vec<_>> = Arc::new(receivers.into_iter().map(Take::new).collect());
        let listeners = Arc::new(Take::new((data, admin)));
        let service = move |local: Rc<LocalStore>| {
            let (shared, core) = (shared.clone(), local.core().index());
            let receiver = receivers[core].take();
            let listeners = if core == 0 { listeners.take() } else { None };
            let here = Here::new(local, shared);
            let serving: std::pin::Pin<Box<dyn Future<Output = ()>>> =
                Box::pin(serve(here, listeners, receiver));
            serving
        };
        let engine = Engine::start_with(&config, Arc::new(service))?;
        Ok(Server { engine, data_address, admin_address })
    }

    /// Where objects are put and read.
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }

    /// Where the operator looks.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What this host does not allow, or what was found damaged: a sentence each.
    pub fn notices(&self) -> &[String] {
        self.engine.notices()
    }

    /// The store behind it.
    pub fn store(&self) -> Store {
        self.engine.store()
    }

    /// Takes no more connections, lets requests under way end within `drain_seconds`, cuts the rest, and ends the
    /// engine. Whoever is cut gets no clean end.
    ///
    /// # Errors
    /// The first failure of a core.
    pub fn stop(self) -> Result<()> {
        self.engine.stop()
    }
}

/// Listens on an address. The ring of a server that was killed keeps its listener for a moment.
fn bind_patiently(address: SocketAddr) -> std::result::Result<Listener, Errno> {
    for _ in 0..BIND_ATTEMPTS {
        match Listener::bind(address) {
            Err(Errno::ADDRINUSE) => std::thread::sleep(BIND_PAUSE),
            outcome => return outcome,
        }
    }
    Listener::bind(address)
}

/// Something that is handed to one of several threads.
struct Take<T>(std::sync::Mutex<Option<T>>);

impl<T> Take<T> {
    fn new(thing: T) -> Take<T> {
        Take(std::sync::Mutex::new(Some(thing)))
    }

    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// The server's part on one core.
pub(super) struct Here {
    pub local: Rc<LocalStore>,
    pub shared: Arc<Shared>,
    connections: TaskGroup,
    drain: Rc<Registry<()>>,
    date: RefCell<DateText>,
    pipes: RefCell<Vec<Pipe>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    requests: Cell<u64>,
}

impl Here {
    pub fn new(local: Rc<LocalStore>, shared: Arc<Shared>) -> Rc<Here> {
        Rc::new(Here {
            local,
            shared,
            connections: TaskGroup::default(),
            drain: Rc::default(),
            date: RefCell::default(),
            pipes: RefCell::default(),
            buffers: RefCell::default(),
            requests: Cell::new(0),
        })
    }

    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    /// Returns when the node drains, if `listens`; otherwise never. Dropping the future leaves nothing behind.
    pub async fn drained(&self, listens: bool) {
        let shared = self.shared.clone();
        let check = move |_| (listens && shared.draining.load(Ordering::Relaxed)).then_some(());
        self.drain.wait((), check).await;
    }

    /// The next request's number: unique in this run, with the core in it.
    pub fn next_request(&self) -> RequestId {
        self.requests.set(self.requests.get() + 1);
        RequestId(self.requests.get() << 6 | self.local.core().index() as u64)
    }

    /// What is under way here, on the connections and in the store.
    #[cfg(test)]
    pub fn census(&self) -> super::drops::Census {
        let pipes = self.pipes.borrow();
        assert!(pipes.iter().all(|pipe| pipe.held() == 0), "a pipe is kept that is not empty");
        let metrics = self.local.metrics();
        super::drops::Census {
            store: self.local.census(),
            pieces_lent: self.local.pieces_lent(),
            open: self.shared.open[self.local.core().index()].load(Ordering::SeqCst),
            data_open: self.shared.open_connections(),
            connections: self.connections.len(),
            drain_waiters: self.drain.len(),
            gauges: [
                metrics.connections_open.get(),
                metrics.followers.get(),
                metrics.followers_waiting.get(),
            ],
        }
    }

    /// How many pipes are kept.
    #[cfg(test)]
    pub fn pipes_kept(&self) -> usize {
        self.pipes.borrow().len()
    }

    /// Calls with the text of the `Date` header.
    pub fn with_date<T>(&self, call: impl FnOnce(&str) -> T) -> T {
        call(self.date.borrow_mut().at(SystemTime::now()))
    }

    /// Gives a connection to a core, and counts it there.
    pub fn send_to(&self, core: usize, arrival: Arrival) {
        self.shared.open[core].fetch_add(1, Ordering::SeqCst);
        if arrival.door == Door::Data {
            self.shared.data_open.fetch_add(1, Ordering::SeqCst);
        }
        if core != self.local.core().index() {
            self.local.metrics().core_messages.increment();
        }
        self.shared.arrivals[core].send(arrival);
    }

    /// An empty pipe.
    pub fn take_pipe(&self) -> std::result::Result<Pipe, Errno> {
        match self.pipes.borrow_mut().pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::new(PIPE_CAPACITY),
        }
    }

    /// Keeps a pipe for the next transfer, if it is empty.
    pub fn keep_pipe(&self, pipe: Pipe) {
        let mut pipes = self.pipes.borrow_mut();
        if pipe.held() == 0 && pipes.len() < KEPT {
            pipes.push(pipe);
        }
    }

    /// A buffer of this length, its content of no meaning.
    pub fn take_buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.buffers.borrow_mut().pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    /// Keeps a buffer for the next transfer.
    pub fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < KEPT {
            buffers.push(buffer);
        }
    }
}

async fn serve(here: Rc<Here>, listeners: Option<(Listener, Listener)>, arrivals: Option<Receiver<Arrival>>) {
    let core = here.local.core().clone();
    let doors = TaskGroup::default();
    let mut admin_door = None;
    if let Some((data, admin)) = listeners {
        doors.spawn(&core, accept(here.clone(), Door::Data, data));
        // The admin door stays open while the node drains, so that /readyz can say so.
        admin_door = Some(core.spawn(accept(here.clone(), Door::Admin, admin)));
    }
    let receiving = arrivals.map(|arrivals| core.spawn(receive(here.clone(), arrivals)));

    here.local.stopping().await;
    here.shared.draining.store(true, Ordering::Relaxed);
    doors.cancel().await;
    here.drain.wake(&());
    let limit = core.now() + Duration::from_secs(here.config().drain_seconds);
    // Until the last request on any core has ended: it may need this one, and /readyz is answered by core 0.
    while here.shared.open_connections() > 0 && core.now() < limit {
        core.sleep(Duration::from_millis(20)).await;
    }
    if !here.connections.is_empty() {
        tracing::warn!(connections = here.connections.len(), "cut at the drain limit");
    }
    // On whichever core: who waits learns why, which no dropped task would.
    here.shared.process.1.cancel(Error::new(Kind::Closed, "the node has come to its drain limit"));
    yield_now().await;
    // First what brings further connections, then those that are left.
    if let Some(door) = admin_door {
        door.cancel().await;
    }
    if let Some(receiving) = receiving {
        receiving.cancel().await;
    }
    here.connections.cancel().await;
}

/// Core 0: takes connections and gives each to the core with the fewest.
async fn accept(here: Rc<Here>, door: Door, listener: Listener) {
    let core = here.local.core().clone();
    let mut complained = false;
    loop {
        let descriptor = match listener.accept(&core).await {
            Ok(descriptor) => descriptor,
            Err(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN | Errno::PROTO) => continue,
            Err(errno) => {
                // No descriptors or no memory: clients wait in the backlog until some are free again.
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%errno, "connections cannot be accepted for now");
                }
                core.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        complained = false;
        let open = &here.shared.open;
        if here.shared.open_connections() >= here.config().connections_max && door == Door::Data {
            here.local.metrics().connections_refused.increment();
            let stream = Stream::new(core.clone(), Arc::new(descriptor));
            connection::refuse(&here, &stream);
            continue;
        }
        let by_load = || (0..open.len()).min_by_key(|&core| open[core].load(Ordering::Relaxed)).unwrap_or(0);
        // Other cores may be gone already while the node drains.
        let fewest = if here.is_draining() { core.index() } else { by_load() };
        if door == Door::Data {
            here.local.metrics().connections_accepted.increment();
        }
        here.send_to(fewest, Arrival::new(door, descriptor));
    }
}

/// Every core: serves the connections that it is given.
async fn receive(here: Rc<Here>, mut arrivals: Receiver<Arrival>) {
    let core = here.local.core().clone();
    // A listener's part on each core, so that cores share no lock when connections come and go.
    let data = here.shared.process.0.with_cancel();
    let admin = here.shared.process.0.with_cancel();
    while let Some(arrival) = arrivals.receive().await {
        let (listener, _) = if arrival.door == Door::Data { &data } else { &admin };
        here.connections.spawn(&core, attend(&here, listener, arrival));
    }
}

/// All that is done for a connection, from when it has come to this core. Dropping it closes the connection, and what
/// was under way on it goes as it does when the client leaves.
pub(super) fn attend(
    here: &Rc<Here>,
    listener: &Context,
    arrival: Arrival,
) -> impl Future<Output = ()> + use<> {
    let Arrival { door, descriptor, input } = arrival;
    let stream = Stream::new(here.local.core().clone(), descriptor);
    let listener = match stream.peer() {
        Some(address) => listener.with_value(Peer(address)),
        None => listener.clone(),
    };
    let (context, over) = listener.with_cancel();
    let counted = Counted::new(here, door);
    let serving = here.clone();
    let span = match door {
        Door::Data => tracing::Span::none(),
        Door::Admin => tracing::debug_span!("admin"),
    };
    let task = async move {
        let (_counted, _over) = (counted, over);
        Connection::new(serving, context, stream, door, input).serve().await;
    };
    task.instrument(span)
}

/// A connection that is open, for the count of its core and the metrics.
struct Counted {
    here: Rc<Here>,
    door: Door,
}

impl Counted {
    fn new(here: &Rc<Here>, door: Door) -> Counted {
        if door == Door::Data {
            here.local.metrics().connections_open.increment();
        }
        Counted { here: here.clone(), door }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let core = self.here.local.core().index();
        self.here.shared.open[core].fetch_sub(1, Ordering::SeqCst);
        if self.door == Door::Data {
            self.here.shared.data_open.fetch_sub(1, Ordering::SeqCst);
            self.here.local.metrics().connections_open.decrement();
        }
    }
}

/// Waits for a future until a time limit, or for ever where there is none.
pub(super) async fn within<F: Future>(
    here: &Here,
    seconds: u64,
    future: F,
) -> std::result::Result<F::Output, crate::runtime::Elapsed> {
    let core = here.local.core();
    match race(future, core.sleep(Duration::from_secs(seconds))).await {
        Either::First(output) => Ok(output),
        Either::Second(()) => Err(crate::runtime::Elapsed),
    }
}
