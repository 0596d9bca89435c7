//! The bodies of the fuzz targets (`scripts/fuzz`), on the inputs that are kept in `tests/fuzz/corpus` and on some
//! that are made here: seeds changed at random, the same ones in every run.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "fuzz/bodies.rs"]
mod bodies;
#[cfg(feature = "simulation")]
#[path = "fuzz/survey.rs"]
mod survey;

use std::path::Path;

/// How many changed inputs are tried for each kept one.
const CHANGES: usize = 400;
/// Bytes that mean something to one of them.
const TELLING: &[u8] = b"\r\n\0 :%,-\"0f;\xff";

/// Runs a body on all kept inputs of its target, and on changed ones.
fn run(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut below = move |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as usize % bound.max(1)
    };
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, seed) in paths.iter().zip(&seeds) {
        // A failure shows which input it was.
        println!("{}", path.display());
        body(seed);
        for _ in 0..CHANGES {
            let mut changed = seed.clone();
            for _ in 0..=below(4) {
                let at = below(changed.len() + 1);
                match below(5) {
                    0 => changed.insert(at, TELLING[below(TELLING.len())]),
                    1 if at < changed.len() => drop(changed.remove(at)),
                    2 if at < changed.len() => changed[at] ^= 1 << below(8),
                    3 => changed.truncate(at),
                    _ => {
                        let other = &seeds[below(seeds.len())];
                        let part = &other[below(other.len())..];
                        changed.splice(at..at, part.iter().copied().take(1 + below(20)));
                    }
                }
            }
            println!("{:?}", changed.escape_ascii().to_string());
            body(&changed);
        }
    }
}

#[test]
fn heads() {
    run("head", bodies::head);
}

#[test]
fn targets() {
    run("target", bodies::target);
}

#[test]
fn chunked_bodies() {
    run("chunked", bodies::chunked);
}

#[test]
fn ranges_and_conditions() {
    run("range", bodies::range);
}

#[test]
fn blocks_and_records() {
    run("log", bodies::log);
}

/// It takes the simulated kernel, which is a feature.
#[cfg(feature = "simulation")]
#[test]
fn the_recovery_scan() {
    run("survey", survey::survey);
}
