//! How long a start takes, and how much memory, with many small sealed objects in the store.
//!
//! `cargo bench --bench start [-- OBJECTS]` makes that many objects of 1 KiB (a million unless told otherwise), ends
//! the store, starts it in a process of its own, and prints the seconds until it answers and the memory it has then.
//! A second start follows a kill: what was in active segments is read again.

use std::cell::Cell;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwater::store::{LocalStore, Name};
use tailwater::{Config, Context, Engine, ListingQuery, Metadata};

const OBJECT_BYTES: usize = 1024;
/// Objects that are made at a time on each core.
const AT_A_TIME: usize = 64;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| text != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["start", folder, how] => start(Path::new(folder), how == "killed"),
        [] => bench(1_000_000),
        [objects] => bench(objects.parse()?),
        _ => Err("usage: start [OBJECTS]".into()),
    }
}

fn bench(objects: usize) -> Outcome<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let began = Instant::now();
    make(folder.path(), objects)?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{objects} sealed objects of {OBJECT_BYTES} bytes made in {seconds:.1} s, stop included");
    for how in ["stopped", "killed", "killed", "stopped"] {
        let me = std::env::current_exe()?;
        let mut child =
            Command::new(me).args(["start".as_ref(), folder.path().as_os_str(), how.as_ref()]).spawn()?;
        child.wait()?;
    }
    let bytes = std::fs::metadata(folder.path().join("catalog"))?.len();
    println!("the catalog is {} MiB", bytes >> 20);
    Ok(())
}

fn config(folder: &Path) -> Config {
    Config { data: folder.to_owned(), cores: 2, ..Config::default() }
}

/// Makes the objects on the cores themselves: it is not the library's surface that is measured.
fn make(folder: &Path, objects: usize) -> Outcome<()> {
    let engine = Engine::start_with(
        &config(folder),
        Arc::new(move |local: Rc<LocalStore>| {
            Box::pin(async move {
                let next = Rc::new(Cell::new(local.core().index()));
                let tasks: Vec<_> = (0..AT_A_TIME)
                    .map(|_| {
                        let (local, next) = (local.clone(), next.clone());
                        let cores = local.shared().cores();
                        local.core().clone().spawn(async move {
                            while next.get() < objects {
                                let number = next.replace(next.get() + cores);
                                make_one(&local, number).await;
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
            })
        }),
    )?;
    Ok(engine.stop()?)
}

async fn make_one(local: &Rc<LocalStore>, number: usize) {
    let context = Context::background();
    let name = Name::new("bench", &format!("{:02}/object-{number:09}", number % 100)).expect("a name");
    let mut writer = local.create(&context, name, Metadata::default(), false).await.expect("room");
    let bytes = [number as u8; OBJECT_BYTES];
    writer.append(&context, &bytes).await.expect("room");
    writer.seal(&context).await.expect("a seal");
}

/// Starts the store in this process, and prints what that took.
fn start(folder: &Path, is_killed: bool) -> Outcome<()> {
    let began = Instant::now();
    let engine = Engine::start(&config(folder))?;
    let store = engine.store();
    let context = Context::background();
    let found = pollster::block_on(store.list(&context, "bench", &ListingQuery::default()))?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "start and first listing of {} objects: {seconds:.3} s; resident {} MiB (of which the arenas' pages that \
         were touched)",
        found.entries.len(),
        resident_mebibytes()?
    );
    if is_killed {
        for number in 0..2000 {
            let name = Name::new("bench", &format!("later/{number}"))?;
            let mut writer = pollster::block_on(store.create(&context, name, Metadata::default(), false))?;
            pollster::block_on(writer.append(&context, vec![1; OBJECT_BYTES].into()))?;
            pollster::block_on(writer.seal(&context))?;
        }
        Command::new("kill").args(["-9", &std::process::id().to_string()]).stdout(Stdio::null()).status()?;
        std::thread::sleep(Duration::from_secs(60));
    }
    Ok(engine.stop()?)
}

fn resident_mebibytes() -> Outcome<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<usize>()? / 1024)
}
