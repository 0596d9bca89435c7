use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::*;
use crate::ring::OpenMode;
use crate::ring::simulated::{Faults, Kind, WorldSettings};
use crate::runtime::channel;

fn world(seed: u64) -> World {
    World::new(WorldSettings { seed, ..WorldSettings::default() })
}

/// Two cores pass a number to and fro. What the first has seen at the end, and the trace of it.
fn ping_pong(seed: u64, rounds: u64) -> (u64, u64) {
    let world = world(seed);
    world.set_faults(Faults::disturbances());
    let mut cores = Cores::new(&world, 2);
    let (to_first, mut at_first) = channel::<u64>();
    let (to_second, mut at_second) = channel::<u64>();
    let last = Rc::new(Cell::new(0));
    let seen = last.clone();
    cores.begin(0, |core| async move {
        to_second.send(0);
        while seen.get() < rounds {
            let Some(number) = at_first.receive().await else { return };
            seen.set(number);
            if number % 3 == 0 {
                core.sleep(Duration::from_micros(number % 70)).await;
            }
            to_second.send(number + 1);
        }
    });
    // Main futures are woken by the bell, tasks by messages.
    cores.begin(1, |core| async move {
        let task = core.spawn(async move {
            while let Some(number) = at_second.receive().await {
                to_first.send(number + 1);
            }
        });
        task.await;
    });
    assert_eq!(cores.run(1_000_000), Pause::Ended);
    let messages = world.events().iter().filter(|event| event.kind == Kind::Message).count();
    assert!(messages > 10, "{messages}");
    drop(cores);
    (last.get(), world.trace())
}

#[test]
fn cores_wake_each_other_though_messages_fail() {
    for seed in 0..20 {
        assert!(ping_pong(seed, 300).0 >= 300);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(ping_pong(5, 200), ping_pong(5, 200));
    assert_ne!(ping_pong(5, 200).1, ping_pong(6, 200).1);
}

#[test]
fn cores_take_turns_in_any_order_and_time_jumps_to_the_next_timer() {
    let mut firsts = [0; 3];
    for seed in 0..30 {
        let world = world(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut cores = Cores::new(&world, 3);
        for index in 0..3 {
            let order = order.clone();
            cores.begin(index, |core| async move {
                order.borrow_mut().push(index);
                core.sleep(Duration::from_secs(3600 * (3 - index as u64))).await;
                order.borrow_mut().push(index);
            });
        }
        assert_eq!(cores.run(1000), Pause::Ended);
        assert!((3 * 3600..3 * 3600 + 60).contains(&world.age().as_secs()));
        firsts[order.borrow()[0]] += 1;
        assert_eq!(order.borrow()[3..], [2, 1, 0], "timers fire when they are due");
    }
    assert!(firsts.iter().all(|&count| count > 0), "{firsts:?}");
}

#[test]
fn more_operations_than_the_queue_holds_are_all_taken() {
    let world = world(1);
    let mut cores = Cores::new(&world, 1);
    let opened = Rc::new(Cell::new(0));
    let count = opened.clone();
    world.make_folder(std::path::Path::new("/data"));
    cores.begin(0, |core| async move {
        let open = |number: usize| {
            let core = core.clone();
            let path = std::path::PathBuf::from(format!("/data/{number}"));
            core.clone().spawn(async move { core.open(&path, OpenMode::WriteBuffered).await.is_ok() })
        };
        for task in (0..100).map(open).collect::<Vec<_>>() {
            count.set(count.get() + usize::from(task.await));
        }
    });
    assert_eq!(cores.run(1000), Pause::Ended);
    assert_eq!(opened.get(), 100);
}

#[test]
fn a_wait_for_ever_is_noticed_and_what_waits_is_dropped() {
    let world = world(1);
    let mut cores = Cores::new(&world, 1);
    let held = Rc::new(());
    let inner = held.clone();
    cores.begin(0, |core| async move {
        let (holder, within) = (inner.clone(), inner);
        let _task = core.spawn(async move {
            std::future::pending::<()>().await;
            drop(holder);
        });
        std::future::pending::<()>().await;
        drop(within);
    });
    assert_eq!(cores.run(1000), Pause::Stalled);
    drop(cores);
    assert_eq!(Rc::strong_count(&held), 1);
}
