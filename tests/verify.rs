//! `tailwater verify`, `tailwater export` and `tailwater serve --rebuild-catalog`: what a person sees of them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{Server, assert_same, content};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tailwater");

fn run(words: &[&str]) -> Output {
    Command::new(PROGRAM).args(words).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn verify(data: &Path) -> Output {
    run(&["verify", data.to_str().unwrap()])
}

fn export(data: &Path, more: &[&str]) -> Output {
    let mut words = vec!["export", data.to_str().unwrap()];
    words.extend(more);
    run(&words)
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, needed: &[&str]) {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{error}");
    assert!(!error.contains("panicked"), "{error}");
    for needed in needed {
        assert!(out.contains(needed) || error.contains(needed), "without {needed:?}: {out}{error}");
    }
}

/// Everything about the files of a folder that could have changed.
fn picture(folder: &Path) -> BTreeMap<PathBuf, (i64, i64, u32, Vec<u8>)> {
    let mut picture = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, file) = (entry.path(), entry.metadata().unwrap());
        let bytes = match file.is_dir() {
            true => {
                picture.extend(self::picture(&path));
                Vec::new()
            }
            false => fs::read(&path).unwrap(),
        };
        picture.insert(path, (file.mtime(), file.mtime_nsec(), file.mode(), bytes));
    }
    picture
}

/// A store with objects that were put, replaced, deleted and interrupted.
fn fill(server: &Server) {
    for number in 0..30 {
        server.put(&format!("/t/{number:02}"), &content(number, 60_000));
    }
    for number in 0..5 {
        server.put(&format!("/t/{number:02}"), &content(100 + number, 40_000));
    }
    for number in 5..10 {
        assert_eq!(server.request("DELETE", &format!("/t/{number:02}"), &[]).head.status, 204);
    }
    let mut put = server.begin_put("/t/cut", None, &[]);
    put.send(&content(50, 10_000));
    server.await_committed("/t/cut", 10_000);
    drop(put);
    server.await_state("/t/cut", "interrupted");
}

#[track_caller]
fn assert_as_before(server: &Server) {
    for number in 0..30 {
        let path = format!("/t/{number:02}");
        match number {
            0..5 => server.assert_sealed(&path, &content(100 + number, 40_000)),
            5..10 => assert_eq!(server.get(&path).head.status, 404, "{path} was deleted"),
            _ => server.assert_sealed(&path, &content(number, 60_000)),
        }
    }
    let response = server.get("/t/cut");
    assert_eq!(response.head.get("tailwater-state"), Some("interrupted"));
    assert_same("an interrupted object", &response.body, &content(50, 10_000));
}

/// What does not depend on when it is asked.
fn listing(server: &Server) -> serde_json::Value {
    server.get("/t/").json()
}

#[test]
fn a_catalog_that_was_lost_is_made_anew_and_everything_is_as_before() {
    let mut server = Server::start();
    fill(&server);
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    let before = listing(&server);
    assert_eq!(before["objects"].as_array().unwrap().len(), 26, "{before}");
    for (is_removed, flag) in [(true, false), (false, true), (true, true)] {
        assert_eq!(server.terminate().code(), Some(0));
        let catalog = server.data_path().join("catalog");
        if is_removed {
            fs::remove_file(&catalog).unwrap();
        }
        if flag {
            server.add_flag("--rebuild-catalog");
        }
        server.restart();
        assert!(server.introduction().contains("made anew"), "{}", server.introduction());
        assert_as_before(&server);
        assert_eq!(listing(&server), before, "removed: {is_removed}, flag: {flag}");
        if flag {
            server.remove_flag("--rebuild-catalog");
        }
    }
    // And it stays so, without reading it all again.
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    assert!(!server.introduction().contains("made anew"), "{}", server.introduction());
    assert_as_before(&server);
    assert_eq!(server.terminate().code(), Some(0));
    assert_ends(&verify(&server.data_path()), 0, &["nothing is damaged"]);
}

#[test]
fn a_catalog_that_is_damaged_is_refused_with_what_helps_and_that_helps() {
    let mut server = Server::start();
    let mut other = Server::start();
    fill(&server);
    other.put("/b/k", b"other");
    assert_eq!(server.terminate().code(), Some(0));
    assert_eq!(other.terminate().code(), Some(0));
    let catalog = server.data_path().join("catalog");
    let whole = fs::read(&catalog).unwrap();
    let garbage = content(1, whole.len());
    let foreign = fs::read(other.data_path().join("catalog")).unwrap();
    let cases: [(&str, &[u8]); 5] = [
        ("cut off", &whole[..whole.len() / 2]),
        ("cut off at once", &whole[..100]),
        ("empty", &[]),
        ("garbage", &garbage),
        ("of another store", &foreign),
    ];
    for (what, bytes) in cases {
        fs::write(&catalog, bytes).unwrap();
        let data = server.data_path();
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"];
        let output = Command::new(PROGRAM).args(arguments).arg(&data).env_clear().output().unwrap();
        assert_ends(&output, 11, &["the catalog", "--rebuild-catalog"]);
        let refused = fs::read(&catalog).unwrap();
        assert_ends(&verify(&data), 11, &["damaged: the catalog"]);
        let exported = export(&data, &["t/20"]);
        assert_ends(&exported, 0, &[]);
        assert_same(what, &exported.stdout, &content(20, 60_000));
        assert!(fs::read(&catalog).unwrap() == refused, "{what}: it was changed");
        server.add_flag("--rebuild-catalog");
        server.restart();
        assert_as_before(&server);
        assert_eq!(server.terminate().code(), Some(0));
        server.remove_flag("--rebuild-catalog");
        assert_ends(&verify(&data), 0, &["nothing is damaged"]);
    }
}

#[test]
fn a_store_is_looked_at_as_it_was_left_and_not_changed() {
    let mut server = Server::start();
    fill(&server);
    assert_ends(&verify(&server.data_path()), 6, &["is in use by another process"]);
    assert_ends(&export(&server.data_path(), &["t/20"]), 6, &["is in use by another process"]);
    for is_killed in [true, false] {
        let path = format!("/k/{is_killed}");
        server.put(&path, &content(70, 300_000));
        let mut put = server.begin_put("/k/live", None, &[]);
        put.send(&content(71, 100_000));
        server.await_committed("/k/live", 100_000);
        match is_killed {
            true => server.kill(),
            false => assert_eq!(server.terminate().code(), Some(0)),
        }
        let data = server.data_path();
        let before = picture(&data);
        assert_ends(&verify(&data), 0, &["nothing is damaged", "objects", "blocks"]);
        let exported = export(&data, &[&path[1..]]);
        assert_ends(&exported, 0, &[]);
        assert_same(&path, &exported.stdout, &content(70, 300_000));
        let exported = export(&data, &["t/00", "-"]);
        assert_same("what replaced it", &exported.stdout, &content(100, 40_000));
        assert_ends(&export(&data, &["t/05"]), 9, &["there is no object t/05"]);
        let exported = export(&data, &["k/live"]);
        assert_ends(&exported, 11, &["k/live is interrupted", "100000 bytes"]);
        assert_same("an interrupted object", &exported.stdout, &content(71, 100_000));
        assert!(picture(&data) == before, "something was changed");
        server.restart();
        assert_as_before(&server);
    }
}

#[test]
fn an_export_goes_to_a_file_and_over_none_that_is_there() {
    let mut server = Server::start_with(&["--cores", "1"]);
    fill(&server);
    let first = server.put("/e/replaced", &content(1, 1000)).json()["generation"].as_u64().unwrap();
    assert_eq!(server.terminate().code(), Some(0));
    let (data, file) = (server.data_path(), server.file_path("exported"));
    let path = file.to_str().unwrap();
    assert_ends(&export(&data, &["t/20", path]), 0, &[]);
    assert_same("a file", &fs::read(&file).unwrap(), &content(20, 60_000));
    assert_ends(&export(&data, &["t/21", path]), 1, &["is there already", "--force"]);
    assert_same("the same file", &fs::read(&file).unwrap(), &content(20, 60_000));
    assert_ends(&export(&data, &["t/00", path, "--force"]), 0, &[]);
    assert_same("another file", &fs::read(&file).unwrap(), &content(100, 40_000));
    // What is not there leaves nothing behind.
    let none = server.file_path("none");
    assert_ends(&export(&data, &["t/none", none.to_str().unwrap()]), 9, &["there is no object t/none"]);
    assert!(!none.exists());
    assert_ends(&export(&data, &["t"]), 1, &["a name is bucket/key"]);
    let exported = export(&data, &["e/replaced", "--generation", &first.to_string()]);
    assert_same("a generation", &exported.stdout, &content(1, 1000));
    assert_ends(&export(&data, &["e/replaced", "--generation", "1"]), 9, &["generation 1 of e/replaced"]);
    assert_ends(&verify(&file), 5, &["not a data folder"]);
    assert_ends(&verify(&server.file_path("nothing")), 5, &["not a data folder"]);
    assert_ends(&export(&server.file_path("nothing"), &["t/20"]), 5, &["not a data folder"]);
}

#[test]
fn a_damaged_object_is_named_and_exported_as_far_as_it_goes_or_filled() {
    let mut server = Server::start_with(&["--cores", "1"]);
    let bytes = content(1, 1_000_000);
    server.put("/d/k", &bytes);
    server.put("/d/other", b"other");
    assert_eq!(server.terminate().code(), Some(0));
    let data = server.data_path();
    // Where a part of it stands.
    let segment = data.join("segments/000000000001.segment");
    let found = fs::read(&segment).unwrap();
    let needle = &bytes[500_000..500_032];
    let at = found.windows(needle.len()).position(|window| window == needle).unwrap();
    OpenOptions::new().write(true).open(&segment).unwrap().write_all_at(&[!found[at]], at as u64).unwrap();
    let output = verify(&data);
    assert_ends(
        &output,
        11,
        &["damaged: segment 1, position", "d/k (generation ", "): bytes ", "1 thing is damaged"],
    );
    let output = String::from_utf8(output.stdout).unwrap();
    let (start, end) =
        output.split_once("): bytes ").unwrap().1.lines().next().unwrap().split_once(" to ").unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    assert!((start..=end).contains(&500_000), "{output}");

    let exported = export(&data, &["d/k"]);
    assert_ends(&exported, 11, &["d/k is damaged", "--fill"]);
    assert_same("up to the damage", &exported.stdout, &bytes[..start]);
    let exported = export(&data, &["--fill", "d/k"]);
    assert_ends(&exported, 11, &["d/k is damaged", "zeroes"]);
    let mut filled = bytes.clone();
    filled[start..=end].fill(0);
    assert_same("with zeroes", &exported.stdout, &filled);
    assert_eq!(export(&data, &["d/other"]).stdout, b"other");
}

#[test]
fn a_marker_that_is_lost_or_wrong_is_named_and_the_rest_is_read() {
    let mut server = Server::start_with(&["--cores", "1"]);
    server.put("/d/k", &content(1, 100_000));
    assert_eq!(server.terminate().code(), Some(0));
    let data = server.data_path();
    let marker = data.join("tailwater.json");
    let whole = fs::read_to_string(&marker).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&whole).unwrap();
    value["store"] = 7.into();
    for text in [None, Some(String::new()), Some("{".to_owned()), Some(value.to_string())] {
        match &text {
            None => fs::remove_file(&marker).unwrap(),
            Some(text) => fs::write(&marker, text).unwrap(),
        }
        let output = verify(&data);
        assert_ends(&output, 11, &["tailwater.json", "1 thing is damaged"]);
        assert_same("an object", &export(&data, &["d/k"]).stdout, &content(1, 100_000));
        fs::write(&marker, &whole).unwrap();
    }
    assert_ends(&verify(&data), 0, &["nothing is damaged"]);
}

#[test]
fn who_may_only_read_can_look_and_export() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: this test needs root");
        return;
    }
    let mut server = Server::start_with(&["--cores", "1"]);
    fill(&server);
    server.kill();
    // A place that nobody can reach, on a file system that cannot be written.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let mounted = place.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    let mount = |words: &[&str]| {
        let output = Command::new("mount").args(words).arg(&mounted).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    mount(&["-t", "tmpfs", "none"]);
    let copied = Command::new("cp").arg("-r").arg(server.data_path()).arg(&mounted).status().unwrap();
    assert!(copied.success());
    fs::copy(PROGRAM, mounted.join("tailwater")).unwrap();
    let readable = Command::new("chmod").args(["-R", "a+rX"]).arg(&mounted).status().unwrap();
    assert!(readable.success());
    let look = |command: &[&str], more: &[&str]| {
        let program = mounted.join("tailwater");
        let mut words = command.to_vec();
        words.push(program.to_str().unwrap());
        words.extend(more);
        Command::new(words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin")
            .output()
            .unwrap()
    };
    let data = mounted.join("data");
    let data = data.to_str().unwrap();
    let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut outputs = vec![look(&as_nobody, &["verify", data]), look(&as_nobody, &["export", data, "t/20"])];
    mount(&["-o", "remount,ro"]);
    outputs.extend([look(&[], &["verify", data]), look(&[], &["export", data, "t/20"])]);
    let unmounted = Command::new("umount").arg(&mounted).status().unwrap();
    assert!(unmounted.success());
    for pair in outputs.chunks(2) {
        assert_ends(&pair[0], 0, &["nothing is damaged"]);
        assert_ends(&pair[1], 0, &[]);
        assert_same("an object", &pair[1].stdout, &content(20, 60_000));
    }
}
