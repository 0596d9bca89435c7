use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context as Polling, Poll, Wake, Waker};
use std::thread;

use proptest::prelude::*;

use super::*;

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn waker() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    (woken.clone(), Waker::from(woken))
}

fn poll(cancelled: &mut Cancelled, waker: &Waker) -> Poll<Error> {
    std::pin::Pin::new(cancelled).poll(&mut Polling::from_waker(waker))
}

fn cause(text: &str) -> Error {
    Error::new(Kind::Closed, text)
}

fn census(context: &Context) -> (usize, usize, usize) {
    context.node.as_ref().unwrap().census()
}

#[test]
fn background_never_ends() {
    let context = Context::background();
    assert!(context.error().is_none() && context.cause().is_none() && !context.can_end());
    assert!(poll(&mut context.cancelled(), Waker::noop()).is_pending());
    assert!(context.check().is_ok() && context.deadline().is_none());
}

#[test]
fn an_end_says_what_kind_it_is_and_why() {
    let (context, canceller) = Context::background().with_cancel();
    canceller.cancel(cause("the node drains"));
    let error = context.check().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Cancelled, "cancelled: the node drains"));
    assert_eq!(context.cause().unwrap().kind(), Kind::Closed);

    let context = Context::background().with_timeout(Duration::ZERO);
    let error = context.check().unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(error.to_string(), "the time limit of 0ns has passed");
    let context = Context::background().with_deadline(Instant::now());
    assert_eq!(context.cause().unwrap().to_string(), "the deadline has passed");
}

#[test]
fn what_is_noticed_first_stays() {
    let now = Instant::now();
    let (parent, canceller) = Context::background().with_deadline(now).with_cancel();
    let child = parent.with_value(7);
    let grandchild = child.with_cancel();
    assert_eq!(child.error_at(now).unwrap().kind(), Kind::DeadlineExceeded);
    canceller.cancel(cause("too late"));
    grandchild.1.cancel(cause("too late"));
    for context in [&parent, &child, &grandchild.0] {
        assert_eq!(context.error().unwrap().kind(), Kind::DeadlineExceeded);
    }

    let (context, canceller) = Context::background().with_deadline(now).with_cancel();
    canceller.cancel(cause("first"));
    assert_eq!(context.error_at(now).unwrap().to_string(), "cancelled: first");
}

#[test]
fn dropping_the_canceller_cancels_and_letting_go_of_it_does_not() {
    let (context, canceller) = Context::background().with_cancel();
    drop(canceller);
    assert_eq!(context.error().unwrap().to_string(), "cancelled: who wanted this work is gone");
    let (parent, canceller) = Context::background().with_cancel();
    let (context, let_go) = parent.with_cancel();
    let_go.let_go();
    assert!(context.check().is_ok());
    drop(canceller);
    assert!(context.check().is_err());
}

#[test]
fn values_are_one_of_each_type() {
    let request = Context::background().with_value(RequestId(0x2a)).with_value(Principal("camera".into()));
    let (operation, _canceller) = request.with_value(RequestId(0x2b)).with_cancel();
    assert_eq!(request.request(), Some(RequestId(0x2a)));
    assert_eq!(operation.request(), Some(RequestId(0x2b)));
    assert_eq!(operation.value::<Principal>().map(|principal| &*principal.0), Some("camera"));
    assert!(operation.value::<Peer>().is_none());
    let detached = operation.with_timeout(Duration::ZERO).detached();
    assert!(detached.check().is_ok() && detached.request() == Some(RequestId(0x2b)));
}

#[test]
fn who_waits_is_woken_once_and_who_gave_up_is_not() {
    let (context, canceller) = Context::background().with_cancel();
    let child = context.with_timeout(Duration::from_secs(3600));
    let ((first_woken, first), (second_woken, second)) = (waker(), waker());
    let (mut waits, mut given_up) = (child.cancelled(), child.cancelled());
    assert!(poll(&mut waits, Waker::noop()).is_pending());
    assert!(poll(&mut waits, &first).is_pending());
    assert!(poll(&mut given_up, &second).is_pending());
    assert_eq!(census(&child).1, 2);
    drop(given_up);
    assert_eq!(census(&child).1, 1);
    canceller.cancel(cause("over"));
    assert_eq!(first_woken.0.load(Ordering::SeqCst), 1);
    assert_eq!((second_woken.0.load(Ordering::SeqCst), Arc::strong_count(&second_woken)), (0, 2));
    assert_eq!(poll(&mut waits, &first).map(|error| error.kind()), Poll::Ready(Kind::Cancelled));
    assert_eq!(census(&child).1, 0);
}

/// The last reference to a context may go with a waker that its own end has woken, and with one that a wait lets go.
#[test]
fn a_waker_may_own_the_context_that_it_waits_for() {
    struct Owner(#[expect(dead_code, reason = "it is only dropped")] Cancelled, Context);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            assert!(self.1.check().is_err());
        }
    }
    let (context, canceller) = Context::background().with_cancel();
    let child = context.with_cancel();
    let mut inner = child.0.cancelled();
    assert!(poll(&mut inner, Waker::noop()).is_pending());
    let owner = Waker::from(Arc::new(Owner(inner, child.0.clone())));
    let mut outer = child.0.cancelled();
    assert!(poll(&mut outer, &owner).is_pending());
    drop(owner);
    assert!(poll(&mut outer, Waker::noop()).is_pending());
    // And one that is there when the end comes.
    let mut inner = child.0.cancelled();
    assert!(poll(&mut inner, Waker::noop()).is_pending());
    let mut last = child.0.cancelled();
    assert!(poll(&mut last, &Waker::from(Arc::new(Owner(inner, child.0.clone())))).is_pending());
    canceller.cancel(cause("over"));
    assert!(child.0.check().is_err());
}

/// What a parent keeps is what is alive: not only entries, but also places for them.
#[test]
fn a_million_short_lived_children_leave_nothing_at_their_parent() {
    let (parent, _canceller) = Context::background().with_cancel();
    let holders = Arc::strong_count(parent.node.as_ref().unwrap());
    let far = Duration::from_secs(3600);
    for number in 0..1_000_000u32 {
        let (child, canceller) = parent.with_value(RequestId(u64::from(number))).with_cancel();
        let operation = child.with_timeout(far);
        let mut wait = operation.cancelled();
        assert!(poll(&mut wait, Waker::noop()).is_pending());
        match number % 4 {
            0 => canceller.cancel(cause("done with")),
            1 => drop(canceller),
            2 => canceller.let_go(),
            // In the other order.
            _ => {
                drop((child, wait));
                drop(operation);
                canceller.let_go();
            }
        }
    }
    let (derived, waiting, places) = census(&parent);
    assert_eq!((derived, waiting), (0, 0));
    assert!(places < 16, "{places} places are kept");
    assert_eq!(Arc::strong_count(parent.node.as_ref().unwrap()), holders);
}

#[test]
fn a_cancelled_child_is_forgotten_while_it_is_held() {
    let (parent, _canceller) = Context::background().with_cancel();
    let (child, canceller) = parent.with_cancel();
    let (sibling, _sibling_canceller) = parent.with_cancel();
    canceller.cancel(cause("only this one"));
    assert_eq!(census(&parent).0, 1);
    // Its place goes to another, which its own end must not take out.
    let (_other, _other_canceller) = parent.with_cancel();
    drop((child, canceller));
    assert_eq!(census(&parent).0, 2);
    assert!(parent.check().is_ok() && sibling.check().is_ok());
}

#[test]
fn a_long_line_of_ancestors_ends_and_goes_without_a_deep_recursion() {
    let (mut context, canceller) = Context::background().with_cancel();
    for _ in 0..200_000 {
        let (child, let_go) = context.with_cancel();
        let_go.let_go();
        context = child;
    }
    canceller.cancel(cause("all of it"));
    assert!(context.check().is_err());
    drop((context, canceller));
    let mut context = Context::background().with_timeout(Duration::from_secs(3600));
    for _ in 0..200_000 {
        context = context.with_cancel().0;
    }
}

#[test]
fn several_threads_derive_wait_and_cancel_at_once() {
    const THREADS: usize = 4;
    for round in 0..300 {
        let (root, canceller) = Context::background().with_cancel();
        let barrier = Barrier::new(THREADS + 1);
        let left = thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|number| {
                    let (root, barrier) = (&root, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let mut kept = Vec::new();
                        for turn in 0..50 {
                            let (child, canceller) = root.with_cancel();
                            let grandchild = child.with_timeout(Duration::from_secs(3600));
                            let (woken, waker) = waker();
                            let mut wait = grandchild.cancelled();
                            let is_late = poll(&mut wait, &waker).is_ready();
                            match (turn + number) % 3 {
                                0 => drop((child, canceller, grandchild)),
                                1 => canceller.cancel(cause("its own")),
                                _ => kept.push((child, canceller, grandchild, wait, woken, waker, is_late)),
                            }
                        }
                        kept
                    })
                })
                .collect();
            barrier.wait();
            if round % 2 == 0 {
                thread::yield_now();
            }
            canceller.cancel(cause("all"));
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(census(&root), (0, 0, 0));
        for (child, _canceller, grandchild, mut wait, woken, waker, is_late) in left {
            assert_eq!(child.error().unwrap().to_string(), "cancelled: all");
            assert_eq!(grandchild.error().unwrap().to_string(), "cancelled: all");
            assert!(is_late || woken.0.load(Ordering::SeqCst) == 1, "a wait was not woken");
            assert!(poll(&mut wait, &waker).is_ready());
        }
    }
}

/// The tree in the plainest way: who derives from whom, and who has ended how.
#[derive(Default)]
struct Model {
    contexts: Vec<Plain>,
}

struct Plain {
    parent: Option<usize>,
    deadline: Option<u64>,
    ended: Option<Plainly>,
    number: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plainly {
    Cancelled(u64),
    DeadlineExceeded,
}

impl Model {
    fn derive(&mut self, parent: usize, deadline: Option<u64>, number: Option<u64>) {
        let above = &self.contexts[parent];
        let plain = Plain {
            parent: Some(parent),
            deadline: [above.deadline, deadline].into_iter().flatten().min(),
            ended: above.ended,
            number: number.or(above.number),
        };
        self.contexts.push(plain);
    }

    fn end(&mut self, at: usize, how: Plainly) {
        for number in at..self.contexts.len() {
            let mut above = Some(number);
            while above.is_some_and(|above| above > at) {
                above = self.contexts[above.unwrap()].parent;
            }
            if above == Some(at) {
                self.contexts[number].ended.get_or_insert(how);
            }
        }
    }

    fn look(&mut self, at: usize, now: u64) -> Option<Plainly> {
        if self.contexts[at].ended.is_none()
            && self.contexts[at].deadline.is_some_and(|deadline| deadline <= now)
        {
            self.end(at, Plainly::DeadlineExceeded);
        }
        self.contexts[at].ended
    }
}

#[derive(Clone, Debug)]
enum Step {
    Derive(usize),
    DeriveWithDeadline(usize, u64),
    DeriveWithValue(usize, u64),
    Cancel(usize, u64),
    DropCanceller(usize),
    Look(usize),
    /// Lets go of a context's last handle; those that derive from it go on.
    Forget(usize),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..64usize;
    prop_oneof![
        4 => at.clone().prop_map(Step::Derive),
        3 => (at.clone(), 0..100u64).prop_map(|(at, after)| Step::DeriveWithDeadline(at, after)),
        1 => (at.clone(), 0..100u64).prop_map(|(at, number)| Step::DeriveWithValue(at, number)),
        2 => (at.clone(), 0..1000u64).prop_map(|(at, cause)| Step::Cancel(at, cause)),
        1 => at.clone().prop_map(Step::DropCanceller),
        4 => at.clone().prop_map(Step::Look),
        2 => at.prop_map(Step::Forget),
        2 => (0..20u64).prop_map(Step::Advance),
    ]
}

const GONE: u64 = u64::MAX;

fn plainly(error: &Error) -> Plainly {
    match error.kind() {
        Kind::DeadlineExceeded => Plainly::DeadlineExceeded,
        _ => match error.to_string().strip_prefix("cancelled: number ") {
            Some(number) => Plainly::Cancelled(number.parse().unwrap()),
            None => Plainly::Cancelled(GONE),
        },
    }
}

proptest! {
    #[test]
    fn the_tree_is_what_a_plain_one_is(steps in proptest::collection::vec(step(), 1..120)) {
        let epoch = Instant::now();
        let time = |now: u64| epoch + Duration::from_millis(now);
        let mut now = 0;
        let mut model = Model::default();
        let (root, canceller) = Context::background().with_cancel();
        let mut contexts = vec![Some(root)];
        let mut cancellers = vec![Some(canceller)];
        model.contexts.push(Plain { parent: None, deadline: None, ended: None, number: None });
        for step in steps {
            let count = contexts.len();
            match step {
                Step::Derive(at) => if let Some(parent) = &contexts[at % count] {
                    let (context, canceller) = parent.with_cancel();
                    contexts.push(Some(context));
                    cancellers.push(Some(canceller));
                    model.derive(at % count, None, None);
                },
                Step::DeriveWithDeadline(at, after) => if let Some(parent) = &contexts[at % count] {
                    // By way of a node of its own, so that looking at it ends it alone, as in the model.
                    let (context, canceller) = parent.with_deadline(time(now + after)).with_cancel();
                    contexts.push(Some(context));
                    cancellers.push(Some(canceller));
                    model.derive(at % count, Some(now + after), None);
                },
                Step::DeriveWithValue(at, number) => if let Some(parent) = &contexts[at % count] {
                    let (context, canceller) = parent.with_value(RequestId(number)).with_cancel();
                    contexts.push(Some(context));
                    cancellers.push(Some(canceller));
                    model.derive(at % count, None, Some(number));
                },
                Step::Cancel(at, number) => if let Some(canceller) = &cancellers[at % count] {
                    canceller.cancel(cause(&format!("number {number}")));
                    model.end(at % count, Plainly::Cancelled(number));
                },
                Step::DropCanceller(at) => if cancellers[at % count].take().is_some() {
                    model.end(at % count, Plainly::Cancelled(GONE));
                },
                Step::Look(at) => if let Some(context) = &contexts[at % count] {
                    let found = context.error_at(time(now)).as_ref().map(plainly);
                    prop_assert_eq!(found, model.look(at % count, now));
                },
                Step::Forget(at) => contexts[at % count] = None,
                Step::Advance(by) => now += by,
            }
        }
        for (at, context) in contexts.iter().enumerate() {
            let Some(context) = context else { continue };
            let plain = &model.contexts[at];
            prop_assert_eq!(context.deadline(), plain.deadline.map(time));
            prop_assert_eq!(context.request(), plain.number.map(RequestId));
            let mut wait = context.cancelled();
            prop_assert_eq!(poll(&mut wait, Waker::noop()).is_ready(), plain.ended.is_some());
            // At the beginning of time, when a deadline may have passed too.
            prop_assert_eq!(context.error_at(epoch).as_ref().map(plainly), model.look(at, 0));
        }
        let root = contexts[0].clone();
        drop((contexts, cancellers));
        if let Some(root) = root {
            prop_assert_eq!(census(&root).0, 0);
        }
    }
}
