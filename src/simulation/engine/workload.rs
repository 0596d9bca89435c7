//! What the tasks of a session do: write, read, delete, list, and look whether that is as it should be.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fastrand::Rng;

use super::model::{Part, Sure, byte_of};
use super::session::Session;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::runtime::Either;
use crate::store::{
    ListingQuery, LocalStore, Metadata, More, Name, Object, Piece, Reader, Resumed, State, Writer,
};

/// One task, which does one thing after the other.
pub(super) struct Worker {
    local: Rc<LocalStore>,
    session: Rc<Session>,
    random: Rng,
}

impl Worker {
    pub fn new(local: &Rc<LocalStore>, session: &Rc<Session>, random: Rng) -> Worker {
        Worker { local: local.clone(), session: session.clone(), random }
    }

    pub async fn work(mut self, steps: usize) {
        for _ in 0..steps {
            if self.local.shared().is_stopping() {
                return;
            }
            let name = self.session.names[self.random.usize(0..self.session.names.len())].clone();
            match self.random.u8(0..20) {
                0..=7 if self.session.resumes && self.random.bool() => self.resume(&name).await,
                0..=7 => self.write(&name).await,
                8..=12 => self.look_up_and_read(&name).await,
                13 => self.wait_and_read(&name).await,
                14 | 15 => self.delete(&name).await,
                16 | 17 => self.list().await,
                18 => self.sleep(8_000_000).await,
                _ => self.sleep(20_000).await,
            }
        }
    }

    async fn sleep(&mut self, microseconds: u64) {
        self.local.core().sleep(Duration::from_micros(self.random.u64(0..microseconds))).await;
    }

    fn violate(&self, what: String) {
        self.session.model.borrow_mut().violate(what);
    }

    /// An error that nothing explains is one that should not be.
    fn check_error(&self, what: &str, error: &Error, expected: &[Kind]) {
        let is_explained = expected.contains(&error.kind())
            || (!self.session.plan.is_in_order && error.kind() != Kind::Damaged)
            || self.local.shared().is_stopping();
        if !is_explained {
            self.violate(format!("{what} is answered: {error}"));
        }
    }

    /// Waits for a future, or gives it up somewhere on its way. None: it was given up.
    async fn perhaps<T>(&mut self, gives_up: bool, future: impl Future<Output = T>) -> Option<T> {
        if !gives_up {
            return Some(future.await);
        }
        if self.random.bool() {
            let mut polls = self.random.usize(0..4);
            let mut future = pin!(future);
            return poll_fn(|context| {
                if polls == 0 {
                    return Poll::Ready(None);
                }
                polls -= 1;
                future.as_mut().poll(context).map(Some)
            })
            .await;
        }
        let limit = Duration::from_micros(self.random.u64(0..3000));
        let core = self.local.core().clone();
        match crate::runtime::race(future, core.sleep(limit)).await {
            Either::First(output) => Some(output),
            Either::Second(()) => None,
        }
    }

    /// Nothing to give up, or a context that ends at some time.
    fn context(&mut self) -> Context {
        match self.random.u8(0..8) {
            0 => {
                let limit = Duration::from_micros(self.random.u64(0..5000));
                Context::background().with_deadline(self.local.core().now() + limit)
            }
            _ => Context::background(),
        }
    }

    // Writing.

    async fn write(&mut self, name: &Name) {
        let local = self.local.clone();
        let context = self.context();
        let only_if_absent = self.random.u8(0..4) == 0;
        let gives_up = self.random.u8(0..12) == 0;
        let creating = local.create(&context, name.clone(), Metadata::default(), only_if_absent);
        let writer = match self.perhaps(gives_up, creating).await {
            None => return,
            Some(Ok(writer)) => writer,
            Some(Err(error)) => {
                let expected = [Kind::Exists, Kind::DeadlineExceeded, Kind::NoSpace];
                let expected = if self.session.plan.is_in_order { &expected[..2] } else { &expected };
                if error.kind() == Kind::Exists && !only_if_absent {
                    self.violate(format!("{name} cannot be replaced: {error}"));
                }
                return self.check_error("a creation", &error, expected);
            }
        };
        self.session.model.borrow_mut().begin(writer.object(), name.bucket() == "short");
        self.go_on(writer, name, 0).await;
    }

    /// Goes on with what a name has that is not sealed.
    async fn resume(&mut self, name: &Name) {
        let local = self.local.clone();
        let before = self.session.model.borrow().before(name);
        let found = match local.find_upload(&Context::background(), name, None).await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return self.check_error("a look for an upload", &error, &[]),
        };
        let generation = found.generation();
        drop(found);
        self.session.model.borrow_mut().check_not_deleted(&before, generation, "a look for an upload");
        // Who writes it here does not look whether somebody else wants to.
        let limit = Duration::from_micros(self.random.u64(0..200_000));
        let context = Context::background().with_deadline(local.core().now() + limit);
        // At rest nobody is to be awaited any more.
        let waits = !self.session.plan.is_in_order && self.random.bool();
        let window = Duration::from_micros(if waits { self.random.u64(0..100_000) } else { 0 });
        let gives_up = self.random.u8(0..8) == 0;
        let resuming = local.resume(&context, name, generation, window);
        let writer = match self.perhaps(gives_up, resuming).await {
            None | Some(Ok(Resumed::On(_))) => return,
            Some(Ok(Resumed::Here(writer))) => writer,
            Some(Err(error)) => {
                let expected = [Kind::NotFound, Kind::WrongState, Kind::DeadlineExceeded];
                return self.check_error("going on", &error, &expected);
            }
        };
        let turn = self.session.model.borrow_mut().resume(writer.object(), writer.offset());
        if let Some(turn) = turn {
            self.go_on(writer, name, turn).await;
        }
    }

    /// Appends to an object, and perhaps seals it.
    async fn go_on(&mut self, mut writer: Writer, name: &Name, turn: u64) {
        let object = writer.object().clone();
        let generation = object.generation();
        let is_open = self.append_some(&mut writer, name, turn).await;
        self.session.model.borrow_mut().let_go(generation, turn);
        let is_mine = self.session.model.borrow().is_at_turn(generation, turn);
        if is_mine && object.state() != State::Live && !object.is_deleted() && self.session.plan.is_in_order {
            self.violate(format!("{object:?} has ended, and its writer is there"));
        }
        drop(object);
        if is_open && is_mine && self.random.u8(0..4) > 0 {
            self.seal(writer).await;
        }
    }

    /// False: nothing more can be appended.
    async fn append_some(&mut self, writer: &mut Writer, name: &Name, turn: u64) -> bool {
        let generation = writer.object().generation();
        for _ in 0..self.random.usize(0..10) {
            let length = match self.random.u8(0..10) {
                0..=3 => self.random.u64(1..400),
                4..=6 => self.random.u64(1..9_000),
                7 | 8 => self.random.u64(1..40_000),
                _ => self.random.u64(1..150_000),
            };
            if !self.session.model.borrow().is_at_turn(generation, turn) {
                return false;
            }
            let part = self.session.model.borrow_mut().append(generation, length);
            if part.start != writer.offset() {
                self.violate(format!("{name} goes on at {}, and not at {}", writer.offset(), part.start));
            }
            let is_open = match self.random.bool() {
                true => self.append(writer, part).await,
                false => self.append_from(writer, part).await,
            };
            if !is_open {
                return false;
            }
            match self.random.u8(0..10) {
                0..=2 => {
                    let context = self.context();
                    if writer.acknowledged(&context).await.is_ok() {
                        self.acknowledged(writer);
                    }
                }
                3 | 4 => self.sleep(3_000).await,
                5 => self.sleep(400_000).await,
                _ => {}
            }
        }
        true
    }

    /// Everything that this writer has appended was acknowledged.
    fn acknowledged(&self, writer: &Writer) {
        let (object, offset) = (writer.object(), writer.offset());
        if object.committed() < offset {
            self.violate(format!("{object:?} acknowledges {offset} bytes, and has {}", object.committed()));
        }
        let mut model = self.session.model.borrow_mut();
        model.commit(object.generation(), offset);
        model.tally.acknowledged += u64::from(!model.is_dead);
    }

    async fn append(&mut self, writer: &mut Writer, part: Part) -> bool {
        let generation = writer.object().generation();
        let bytes: Vec<u8> =
            (part.start..part.end).map(|offset| byte_of(generation, part.salt, offset)).collect();
        let (context, gives_up) = (self.context(), self.random.u8(0..8) == 0);
        let outcome = match self.random.bool() {
            true => self.perhaps(gives_up, writer.append(&context, &bytes)).await,
            false => self.perhaps(gives_up, writer.write_frame(&context, 7, &bytes)).await,
        };
        match writer.offset() {
            offset if offset == part.end => {}
            offset if offset == part.start => {
                self.session.model.borrow_mut().take_back(generation, part);
                if matches!(outcome, Some(Ok(()))) {
                    self.violate(format!("an append to {generation} is acknowledged, and was not made"));
                }
            }
            offset => {
                self.violate(format!("an append to {generation} ends at {offset}, in the midst of {part:?}"))
            }
        }
        match outcome {
            Some(Ok(())) => self.acknowledged(writer),
            None => {}
            Some(Err(error)) => {
                self.check_append_error(writer, &error);
                return error.kind() == Kind::DeadlineExceeded;
            }
        }
        true
    }

    fn check_append_error(&self, writer: &Writer, error: &Error) {
        let is_deleted = writer.object().is_deleted();
        let expected = if is_deleted {
            &[Kind::WrongState, Kind::DeadlineExceeded][..]
        } else {
            &[Kind::DeadlineExceeded]
        };
        self.check_error("an append", error, expected);
    }

    /// As one that receives from a socket: as much as there is room for, and without waiting for durability.
    async fn append_from(&mut self, writer: &mut Writer, wanted: Part) -> bool {
        let generation = writer.object().generation();
        self.session.model.borrow_mut().take_back(generation, wanted);
        let length = (wanted.end - wanted.start) as usize;
        let share = self.random.usize(1..=length);
        loop {
            let fill = |space: &mut [u8]| {
                let count = space.len().min(share);
                for (offset, byte) in (wanted.start..).zip(&mut space[..count]) {
                    *byte = byte_of(generation, wanted.salt, offset);
                }
                Ok::<_, Error>(count)
            };
            match writer.append_from(length, fill) {
                Ok(Some(count)) => {
                    let mut model = self.session.model.borrow_mut();
                    let part = Part { end: wanted.start + count as u64, ..wanted };
                    model.generations.entry(generation).and_modify(|object| object.parts.push(part));
                    return true;
                }
                Ok(None) => {
                    let context = self.context();
                    if let Err(error) = writer.room(&context, length).await {
                        self.check_append_error(writer, &error);
                        return false;
                    }
                }
                Err(error) => {
                    self.check_append_error(writer, &error);
                    return false;
                }
            }
        }
    }

    async fn seal(&mut self, writer: Writer) {
        let (object, end) = (writer.object().clone(), writer.offset());
        let generation = object.generation();
        self.session
            .model
            .borrow_mut()
            .generations
            .entry(generation)
            .and_modify(|object| object.sealed = Sure::Maybe);
        let (context, gives_up) = (self.context(), self.random.u8(0..10) == 0);
        match self.perhaps(gives_up, writer.seal(&context)).await {
            Some(Ok(sealed)) => {
                if sealed.state() != State::Sealed || sealed.committed() != end {
                    self.violate(format!("{sealed:?} was to be sealed with {end} bytes"));
                }
                let mut model = self.session.model.borrow_mut();
                model.seal(generation, end);
                model.tally.sealed += u64::from(!model.is_dead);
            }
            Some(Err(error)) => {
                let expected = [Kind::DeadlineExceeded, Kind::WrongState];
                self.check_error("a seal", &error, &expected[..if object.is_deleted() { 2 } else { 1 }]);
            }
            None => {}
        }
    }

    // Reading.

    async fn look_up_and_read(&mut self, name: &Name) {
        let before = self.session.model.borrow().before(name);
        let found = match self.local.find(&Context::background(), name).await {
            Ok(found) => found,
            Err(error) => return self.check_error("a look-up", &error, &[]),
        };
        let generation = found.as_ref().map(|object| object.generation());
        self.session.model.borrow_mut().check_found(&before, generation, "a look-up");
        if let Some(object) = found {
            self.read(object).await;
        }
    }

    async fn wait_and_read(&mut self, name: &Name) {
        let (local, before) = (self.local.clone(), self.session.model.borrow().before(name));
        let limit = Duration::from_micros(self.random.u64(0..200_000));
        let context = Context::background().with_deadline(local.core().now() + limit);
        let begun = match local.find_when_begun(&context, name).await {
            Ok(object) => object,
            Err(error) => return self.check_error("a wait", &error, &[Kind::DeadlineExceeded]),
        };
        self.session.model.borrow_mut().check_found(&before, Some(begun.generation()), "a wait");
        self.read(begun).await;
    }

    /// Reads an object to its end, or as far as chance has it, at some pace.
    async fn read(&mut self, object: Arc<Object>) {
        let from = match self.random.bool() {
            true => 0,
            false => self.random.u64(0..=object.committed()),
        };
        let mut reader = self.local.read(object.clone(), from);
        let is_slow = self.random.u8(0..4) == 0;
        let most = if self.random.bool() { u64::MAX } else { self.random.u64(0..100_000) };
        while reader.offset() - from < most {
            if is_slow {
                self.sleep(1_000_000).await;
            }
            let length = self.random.u64(1..60_000);
            match read_on(&mut reader, length, &self.session).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return self.check_error("a read", &error, &[]),
            }
            if reader.available() > 0 {
                continue;
            }
            let limit = Duration::from_micros(self.random.u64(0..100_000));
            let context = Context::background().with_deadline(self.local.core().now() + limit);
            match reader.more(&context, 0).await {
                Ok(More::Available) => {}
                Ok(More::Sealed) => {
                    return self.session.model.borrow_mut().seal(object.generation(), reader.offset());
                }
                Ok(More::Interrupted) => {
                    let model = self.session.model.borrow();
                    let known = model.generations.get(&object.generation());
                    let is_wrong = known.is_some_and(|object| object.sealed == Sure::Yes);
                    drop(model);
                    if is_wrong {
                        self.violate(format!(
                            "{object:?} is sealed, and its reader is told that it was interrupted"
                        ));
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }

    // Names.

    async fn delete(&mut self, name: &Name) {
        let local = self.local.clone();
        let doomed = self.session.model.borrow_mut().begin_deletion(name);
        let (context, gives_up) = (self.context(), self.random.u8(0..8) == 0);
        let outcome = self.perhaps(gives_up, local.delete(&context, name)).await;
        match outcome {
            Some(Ok(())) => self.session.model.borrow_mut().deleted(&doomed),
            // It may go on by itself.
            None => return,
            Some(Err(error)) if error.kind() == Kind::DeadlineExceeded => return,
            Some(Err(error)) if error.kind() == Kind::NotFound => {}
            Some(Err(error)) => {
                self.check_error("a deletion", &error, &[]);
                return;
            }
        }
        self.session.model.borrow_mut().end_deletion(name);
    }

    async fn list(&mut self) {
        let session = self.session.clone();
        let before: Vec<_> = session.names.iter().map(|name| session.model.borrow().before(name)).collect();
        let listed = match list_all(&self.local, &mut self.random).await {
            Ok(listed) => listed,
            Err(error) => return self.check_error("a listing", &error, &[]),
        };
        let mut model = session.model.borrow_mut();
        for (name, before) in session.names.iter().zip(&before) {
            let found = listed.iter().find(|(listed, ..)| listed == name.as_str());
            model.check_found(before, found.map(|found| found.1), "a listing");
        }
        model.tally.listings += u64::from(!model.is_dead);
    }
}

/// Reads the next bytes and compares them. False: there are none now.
async fn read_on(reader: &mut Reader, length: u64, session: &Session) -> Result<bool> {
    reader.locate().await?;
    let mut pieces: Vec<Piece> = Vec::new();
    let gathered = reader.gather(length, 3, &mut pieces) as u64;
    if gathered == 0 {
        if reader.available() > 0 {
            session.model.borrow_mut().violate(format!("nobody knows where {:?} goes on", reader.object()));
        }
        return Ok(false);
    }
    let hot: Vec<Option<Vec<u8>>> =
        pieces.iter().map(|piece| piece.hot.as_ref().map(|region| region.to_vec())).collect();
    for piece in &mut pieces {
        piece.hot = None;
    }
    let local = reader.local().clone();
    let generation = reader.object().generation();
    let mut offset = reader.offset();
    for (piece, hot) in pieces.iter().zip(hot) {
        let bytes = match hot {
            Some(bytes) => bytes,
            None => {
                let file = local.file(&piece.segment).await?;
                let (read, bytes) = local.core().read(&file, piece.position, vec![0; piece.length], 0).await;
                let number = piece.segment.number();
                let read = read.map_err(|errno| Error::device(format!("segment {number}"), errno))?;
                if read < piece.length {
                    return Err(Error::new(Kind::Damaged, format!("segment {number} ends")));
                }
                bytes
            }
        };
        let mut model = session.model.borrow_mut();
        if let Err(violation) = model.check_content(generation, offset, &bytes) {
            let (number, position) = (piece.segment.number(), piece.position);
            model.violate(format!("{violation}: in segment {number} at {position}"));
        }
        offset += bytes.len() as u64;
        model.commit(generation, offset);
        model.tally.read_bytes += bytes.len() as u64;
    }
    reader.advance(gathered);
    Ok(true)
}

/// Name, generation and length of all that is listed, page by page.
async fn list_all(local: &Rc<LocalStore>, random: &mut Rng) -> Result<Vec<(String, u64, u64)>> {
    let context = Context::background();
    let limit = random.usize(1..6);
    let mut listed = Vec::new();
    for bucket in ["a", "b", "short"] {
        let mut query = ListingQuery { limit, ..ListingQuery::default() };
        loop {
            let page = local.list(&context, bucket, &query).await?;
            let names = page
                .entries
                .iter()
                .map(|entry| (format!("{bucket}/{}", entry.key), entry.generation, entry.length));
            listed.extend(names);
            match page.next {
                Some(next) => query.after = next,
                None => break,
            }
        }
    }
    Ok(listed)
}

/// When nothing goes on: what is listed, found and read is what is expected, and nothing else.
pub(super) async fn compare_at_rest(local: &Rc<LocalStore>, session: &Rc<Session>, random: &mut Rng) {
    if let Err(error) = compare(local, session, random).await {
        session.model.borrow_mut().violate(format!("at rest, a call is answered: {error}"));
    }
}

async fn compare(local: &Rc<LocalStore>, session: &Rc<Session>, random: &mut Rng) -> Result<()> {
    let listed = list_all(local, random).await?;
    for name in session.names.iter() {
        let found = local.find(&Context::background(), name).await?;
        let known = found.as_ref().map(|object| (object.generation(), object.committed()));
        let shown =
            listed.iter().find(|(listed, ..)| listed == name.as_str()).map(|found| (found.1, found.2));
        let expected = session.model.borrow().served(name);
        let may_expire = name.bucket() == "short";
        if known != shown && !may_expire {
            let what = format!("{name} is listed as {shown:?}, and found as {known:?}");
            session.model.borrow_mut().violate(what);
        }
        if let Some(expected) = expected
            && expected != known.map(|known| known.0)
        {
            let what = format!("at rest, {name} serves {known:?}, and not {expected:?}");
            session.model.borrow_mut().violate(what);
        }
        let Some(object) = found else { continue };
        if object.state() == State::Live {
            session.model.borrow_mut().violate(format!("{object:?} is live, and nobody writes it"));
        }
        let mut reader = local.read(object.clone(), 0);
        while read_on(&mut reader, u64::MAX, session).await? {}
        if reader.offset() != object.committed() {
            let what = format!("of {object:?} only {} bytes can be read", reader.offset());
            session.model.borrow_mut().violate(what);
        }
    }
    Ok(())
}
