//! How the program ends: one clear sentence on standard error, an exit code of its own for each reason, and 0 when
//! it was told to end.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn tailwater(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.args(arguments).env_clear();
    command
}

/// `tailwater serve` in a folder of its own, on ports that the system chooses unless `arguments` say otherwise.
fn serve(data: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = tailwater(&["serve", "--cores", "1", "--arena-bytes", "4MiB"]);
    command.arg("--data").arg(data.path());
    for flag in ["--listen", "--admin"] {
        if !arguments.contains(&flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    command.args(arguments);
    command
}

#[track_caller]
fn assert_ends(output: Output, code: i32, sentence: &str) {
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    let last = error.lines().rfind(|line| line.starts_with("tailwater: ")).unwrap_or_default();
    assert!(last.contains(sentence), "{error}");
}

#[test]
fn a_wrong_use_ends_with_2() {
    for arguments in [&["serve", "--cores", "many"][..], &["serve", "--core", "1"], &["sevre"], &[]] {
        let output = tailwater(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_3() {
    let output = tailwater(&["serve"]).env("TAILWATER_LISTN", "127.0.0.1:1").output().unwrap();
    assert_ends(output, 3, "did you mean TAILWATER_LISTEN?");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "cores = 1\nblock_bytes = 5\n").unwrap();
    let output = tailwater(&["serve", "--config"]).arg(file.path()).output().unwrap();
    assert_ends(output, 3, "block_bytes is 5");
}

#[test]
fn a_taken_address_ends_with_4() {
    let data = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin"] {
        assert_ends(serve(&data, &[flag, &taken]).output().unwrap(), 4, &taken);
    }
}

#[test]
fn the_first_signal_ends_a_server_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let data = tempfile::tempdir().unwrap();
        let mut server = serve(&data, &[]).stdout(Stdio::piped()).spawn().unwrap();
        let introduction = introduction(&mut server);
        kill_process(Pid::from_child(&server), signal).unwrap();
        assert_eq!(server.wait().unwrap().code(), Some(0));

        let text = introduction.join("\n");
        for needed in ["objects  http://127.0.0.1:", "admin    http://127.0.0.1:", "cores    1"] {
            assert!(text.contains(needed), "{text}");
        }
        assert!(text.contains(data.path().to_str().unwrap()), "{text}");
        assert!(!text.contains(":0/"), "the addresses must be those that were really taken: {text}");
    }
}

#[test]
fn a_server_that_is_not_durable_says_so() {
    let data = tempfile::tempdir().unwrap();
    let mut server = serve(&data, &["--durability", "none"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let warned = lines.any(|line| line.unwrap().contains("WARNING  durability is \"none\""));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(warned);
}

#[test]
fn doctor_ends_with_1_only_where_a_server_cannot_run() {
    let folder = tempfile::tempdir().unwrap();
    let output = tailwater(&["doctor", "--json", "--data"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(findings.as_array().unwrap().len() >= 10, "{findings}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let output = tailwater(&["doctor", "--data"]).arg(file.path()).output().unwrap();
    assert_ends(output, 1, "data folder");
}

/// What a server prints when it has started, up to the line about its cores.
fn introduction(server: &mut Child) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(server.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.trim_start().starts_with("cores")) {
            return lines;
        }
    }
    panic!("the server ended before it had introduced itself: {lines:?}");
}
