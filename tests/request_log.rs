//! A log line of any depth carries the number of the request that it belongs to, and of no other.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Server, content, eventually};
use serde_json::Value;

fn server(flags: &[&str]) -> Server {
    let mut all = vec!["--log-format", "json", "--log-level", "trace"];
    all.extend_from_slice(flags);
    Server::start_with(&all)
}

fn lines(server: &Server) -> Vec<Value> {
    server.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

fn id_of(line: &Value) -> Option<&str> {
    line["span"]["id"].as_str()
}

/// The numbers of the requests for a path.
fn requests<'a>(lines: &'a [Value], method: &str, path: &str) -> Vec<&'a str> {
    let is_it = |line: &&Value| text(line, "message") == "request" && text(line, "path") == path;
    lines.iter().filter(is_it).filter(|line| text(line, "method") == method).filter_map(id_of).collect()
}

fn find<'a>(lines: &'a [Value], message: &str, object: &str) -> Option<&'a Value> {
    lines.iter().find(|line| text(line, "message") == message && text(line, "object") == object)
}

#[test]
fn lines_of_the_store_carry_the_number_of_the_request() {
    let server = server(&["--cores", "2"]);
    // Many at once, on both cores, so that their turns come in between each other's.
    let paths: Vec<String> = (0..12).map(|number| format!("/bucket/key-{number}")).collect();
    let mut puts: Vec<_> = paths.iter().map(|path| server.begin_put(path, None, &[])).collect();
    for round in 0..20 {
        puts.iter_mut().for_each(|put| put.send(&content(round, 1000)));
    }
    // Some are sealed, some cut.
    for (number, put) in puts.into_iter().enumerate() {
        match number % 2 {
            0 => drop(put.finish_created()),
            _ => put.reset(),
        }
    }
    paths.iter().skip(1).step_by(2).for_each(|path| server.await_state(path, "interrupted"));
    for path in &paths {
        assert_eq!(server.request("DELETE", path, &[]).head.status, 204);
    }
    let wanted =
        |message: &str| lines(&server).iter().filter(|line| text(line, "message") == message).count();
    eventually("all lines are there", || {
        wanted("a deletion is logged") == paths.len() && wanted("interrupted") == paths.len() / 2
    });

    let lines = lines(&server);
    let mut seen = BTreeMap::new();
    for (number, path) in paths.iter().enumerate() {
        let object = path.trim_start_matches('/');
        let puts = requests(&lines, "PUT", path);
        let [put] = puts[..] else { panic!("one PUT, and not {puts:?}") };
        let deletes = requests(&lines, "DELETE", path);
        let [delete] = deletes[..] else { panic!("one DELETE, and not {deletes:?}") };
        assert!(seen.insert(put, path).is_none() && seen.insert(delete, path).is_none());
        let mut expected = vec![("begun", put), ("a deletion is logged", delete)];
        if number % 2 == 1 {
            expected.push(("interrupted", put));
        }
        for (message, id) in expected {
            let line = find(&lines, message, object).unwrap_or_else(|| panic!("{message}: {object}"));
            assert_eq!(id_of(line), Some(id), "{line}");
            assert_eq!(line["span"]["name"], "request");
            assert!(text(line, "target").starts_with("tailwater::store"), "{line}");
        }
    }
    // Where the deletion was asked for and where it is logged may be two cores.
    let cores: BTreeSet<_> = lines.iter().filter(|line| id_of(line).is_some()).map(core_of).collect();
    assert!(cores.len() >= 2, "all requests were on one core: {cores:?}");
}

/// The number of a request has its core in it.
fn core_of(line: &Value) -> u64 {
    u64::from_str_radix(id_of(line).unwrap_or("0"), 16).unwrap() % 64
}

#[test]
fn lines_of_the_log_below_carry_the_number_of_the_request() {
    let server = server(&["--cores", "1", "--arena-bytes", "4MiB"]);
    let bytes = content(1, 4 << 20);
    let message = "the log has no room yet";
    let mut number = 0;
    eventually("an upload waits for room in the log", || {
        server.put(&format!("/bucket/large-{number}"), &bytes);
        number += 1;
        lines(&server).iter().any(|line| text(line, "message") == message)
    });
    let lines = lines(&server);
    let known: BTreeSet<_> =
        (0..number).flat_map(|number| requests(&lines, "PUT", &format!("/bucket/large-{number}"))).collect();
    for line in lines.iter().filter(|line| text(line, "message") == message) {
        assert_eq!(text(line, "target"), "tailwater::log::writer");
        assert!(known.contains(id_of(line).unwrap_or_default()), "{line}");
    }
    // What belongs to no request has no number.
    let recovered = lines.iter().find(|line| text(line, "message") == "recovered").unwrap();
    assert!(id_of(recovered).is_none(), "{recovered}");
}

#[test]
fn what_is_cut_at_the_drain_limit_says_so_with_its_number() {
    let mut server = server(&["--drain-seconds", "1"]);
    let mut put = server.begin_put("/bucket/cut", None, &[]);
    put.send(b"some");
    server.await_committed("/bucket/cut", 4);
    assert!(server.terminate().success());
    let lines = lines(&server);
    let puts = requests(&lines, "PUT", "/bucket/cut");
    let cut = lines.iter().find(|line| text(line, "message") == "cut").unwrap();
    assert_eq!(
        (id_of(cut), text(cut, "error")),
        (puts.first().copied(), "cancelled: the node has come to its drain limit")
    );
    assert_eq!(id_of(find(&lines, "interrupted", "bucket/cut").unwrap()), puts.first().copied());
}
