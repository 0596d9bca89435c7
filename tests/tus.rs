//! tus 1.0: what its own clients send (tus-js-client and tuspy, killed and started again), and each rule of it by a
//! raw client.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{End, Head, Program, Response, Server, content, eventually};

/// What `scripts/test` has installed of clients. None: it was not run, and the test says so and passes, except in
/// continuous integration.
fn client(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../clients").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{} is needed", path.display());
    eprintln!("SKIPPED: {} is needed for this test: scripts/test installs it", path.display());
    None
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn javascript() -> Option<Command> {
    let modules = client("node/node_modules")?;
    let mut command = Command::new("node");
    command.arg(script("tus.js")).env("NODE_PATH", modules);
    Some(command)
}

fn python() -> Option<Command> {
    let mut command = Command::new(client("python/bin/python")?);
    command.arg(script("tus.py"));
    Some(command)
}

/// Runs a client that kills itself in the midst, and then again to its end, while somebody follows.
fn killed_and_resumed(server: &Server, client: fn() -> Option<Command>, flags: [&[&str]; 2], key: &str) {
    let bytes = content(7, 5_900_001);
    let (file, storage) = (server.file_path("upload"), server.file_path("urls.json"));
    std::fs::write(&file, &bytes).unwrap();
    let command = |flags: &[&str]| {
        let mut command = client()?;
        command.arg(server.url("/_tus/b")).arg(&file).arg(key).arg("500000").arg(&storage).args(flags);
        Some(command)
    };
    let Some(mut first) = command(flags[0]) else { return };
    let (_, status, complaints) = Program::start(&mut first).finish();
    assert!(!status.success() && status.code().is_none(), "it was killed: {status}: {complaints}");
    let path = format!("/b/{key}");
    let mut follower = server.follow(&path);
    follower.expect(&bytes[..500_000]);
    assert_eq!(server.head(&path).get("tailwater-state"), Some("live"), "it is awaited");
    let Some(mut second) = command(flags[1]) else { return };
    let (output, status, complaints) = Program::start(&mut second).finish();
    assert!(status.success(), "{status}: {complaints}");
    assert!(String::from_utf8_lossy(&output).contains("/_tus/b/"), "{output:?}");
    follower.expect_rest(&bytes[500_000..]);
    server.assert_sealed(&path, &bytes);
    assert_eq!(server.head(&path).get("content-type"), Some("video/mp2t"));
}

#[test]
fn tus_js_client_is_killed_and_goes_on() {
    let server = Server::start_with(&["--cores", "2"]);
    killed_and_resumed(&server, javascript, [&["--die-after", "2000000"], &[]], "from-javascript");
    assert_eq!(server.head("/b/from-javascript").get("x-amz-meta-camera"), Some("north"));
}

#[test]
fn tus_js_client_sends_a_stream_of_unknown_length() {
    let server = Server::start_with(&["--cores", "2"]);
    let bytes = content(9, 2_300_000);
    let file = server.file_path("stream");
    std::fs::write(&file, &bytes).unwrap();
    let Some(mut command) = javascript() else { return };
    command.arg(server.url("/_tus/b")).arg(&file).args(["stream", "500000"]);
    command.arg(server.file_path("urls.json")).arg("--defer-length");
    let (_, status, complaints) = Program::start(&mut command).finish();
    assert!(status.success(), "{status}: {complaints}");
    server.assert_sealed("/b/stream", &bytes);
}

#[test]
fn tuspy_is_killed_and_goes_on_each_chunk_with_its_checksum() {
    let server = Server::start_with(&["--cores", "2"]);
    killed_and_resumed(&server, python, [&["2000000"], &[]], "from-python");
}

const VERSION: (&str, &str) = ("Tus-Resumable", "1.0.0");
const OCTETS: (&str, &str) = ("Content-Type", "application/offset+octet-stream");

fn request(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], bytes: &[u8]) -> Response {
    let mut connection = server.connect();
    let length = bytes.len().to_string();
    connection.request(method, path, &[&[VERSION, ("Content-Length", length.as_str())], headers].concat());
    connection.try_send(bytes);
    let response = connection.response(method);
    assert_eq!(response.head.get("tus-resumable"), Some("1.0.0"), "{response:?}");
    response
}

fn offset(head: &Head) -> u64 {
    head.get("upload-offset").unwrap_or_else(|| panic!("{head:?}")).parse().unwrap()
}

fn create(server: &Server, path: &str, headers: &[(&str, &str)]) -> String {
    let response = request(server, "POST", path, headers, b"");
    assert_eq!(response.head.status, 201, "{response:?}");
    response.head.get("location").unwrap().to_owned()
}

fn patch(server: &Server, url: &str, at: u64, headers: &[(&str, &str)], bytes: &[u8]) -> Response {
    let at = at.to_string();
    request(server, "PATCH", url, &[&[OCTETS, ("Upload-Offset", at.as_str())], headers].concat(), bytes)
}

#[test]
fn what_the_node_can_do_is_told_and_other_versions_are_refused() {
    let server = Server::start();
    let mut connection = server.connect();
    connection.request("OPTIONS", "/_tus/", &[]);
    let options = connection.response("OPTIONS").head;
    assert_eq!((options.status, options.get("tus-version")), (204, Some("1.0.0")));
    let extensions = options.get("tus-extension").unwrap();
    for extension in
        ["creation", "creation-with-upload", "creation-defer-length", "expiration", "termination", "checksum"]
    {
        assert!(extensions.split(',').any(|known| known == extension), "{extension}");
    }
    assert_eq!(options.get("tus-checksum-algorithm"), Some("sha1"));
    let other = server.request("POST", "/_tus/b/k", &[("Tus-Resumable", "0.2.2"), ("Upload-Length", "5")]);
    assert_eq!((other.head.status, other.head.get("tus-version")), (412, Some("1.0.0")));
}

#[test]
fn an_upload_is_created_with_or_without_bytes_and_length() {
    let server = Server::start();
    let url = create(&server, "/_tus/b/dir/a%20b", &[("Upload-Length", "5"), ("Upload-Metadata", "k dg==")]);
    assert_eq!(server.head("/b/dir/a%20b").get("tailwater-state"), Some("live"));
    let head = request(&server, "HEAD", &url, &[], b"").head;
    assert_eq!((head.status, offset(&head), head.get("upload-length")), (200, 0, Some("5")));
    assert_eq!((head.get("upload-metadata"), head.get("cache-control")), (Some("k dg=="), Some("no-store")));
    assert!(head.get("upload-expires").is_some());
    let response = patch(&server, &url, 0, &[], b"12");
    assert_eq!((response.head.status, offset(&response.head)), (204, 2));
    let wrong = patch(&server, &url, 1, &[], b"3");
    assert_eq!((wrong.head.status, offset(&wrong.head)), (409, 2));
    // A client that can send no PATCH.
    let overridden = [("X-HTTP-Method-Override", "PATCH"), OCTETS, ("Upload-Offset", "2")];
    assert_eq!(offset(&request(&server, "POST", &url, &overridden, b"345").head), 5);
    server.assert_sealed("/b/dir/a%20b", b"12345");
    assert_eq!(offset(&request(&server, "HEAD", &url, &[], b"").head), 5);

    let whole = request(&server, "POST", "/_tus/b/whole", &[OCTETS, ("Upload-Length", "5")], b"12345");
    assert_eq!((whole.head.status, offset(&whole.head)), (201, 5));
    server.assert_sealed("/b/whole", b"12345");
    create(&server, "/_tus/b/empty", &[("Upload-Length", "0")]);
    server.assert_sealed("/b/empty", b"");

    let url = create(&server, "/_tus/b/deferred", &[("Upload-Defer-Length", "1")]);
    assert_eq!(patch(&server, &url, 0, &[], b"12").head.status, 204);
    let head = request(&server, "HEAD", &url, &[], b"").head;
    assert_eq!((head.get("upload-defer-length"), head.get("upload-length")), (Some("1"), None));
    assert_eq!(
        patch(&server, &url, 2, &[("Upload-Length", "1")], b"").head.status,
        400,
        "less than is there"
    );
    assert_eq!(patch(&server, &url, 2, &[("Upload-Length", "4")], b"3").head.status, 204);
    let head = request(&server, "HEAD", &url, &[], b"").head;
    assert_eq!((head.get("upload-defer-length"), head.get("upload-length")), (None, Some("4")));
    assert_eq!(patch(&server, &url, 3, &[("Upload-Length", "9")], b"").head.status, 400, "another length");
    assert_eq!(patch(&server, &url, 3, &[], b"4").head.status, 204);
    server.assert_sealed("/b/deferred", b"1234");
}

/// The node forgot it with its end, and the last bytes of the upload did not complete it.
#[test]
fn a_length_that_was_declared_late_is_known_after_a_restart() {
    let mut server = Server::start();
    let url = create(&server, "/_tus/b/late", &[("Upload-Defer-Length", "1")]);
    assert_eq!(patch(&server, &url, 0, &[], b"12").head.status, 204);
    assert_eq!(patch(&server, &url, 2, &[("Upload-Length", "6")], b"3").head.status, 204);
    for (round, byte) in [b"4", b"5", b"6"].into_iter().enumerate() {
        match round {
            0 => assert!(server.terminate().success()),
            _ => server.kill(),
        }
        if round == 1 {
            std::fs::remove_file(server.data_path().join("catalog")).unwrap();
        }
        server.restart();
        let head = request(&server, "HEAD", &url, &[], b"").head;
        assert_eq!((offset(&head), head.get("upload-length")), (3 + round as u64, Some("6")), "{round}");
        assert_eq!(patch(&server, &url, 3 + round as u64, &[], byte).head.status, 204);
    }
    server.assert_sealed("/b/late", b"123456");
    server.assert_verified_when_stopped();
}

#[test]
fn a_chunk_with_a_checksum_counts_as_a_whole_or_not_at_all() {
    let server = Server::start();
    let bytes = content(8, 3_000_000);
    let url = create(&server, "/_tus/b/checked", &[("Upload-Length", "3000009")]);
    let mut follower = server.follow("/b/checked");
    assert_eq!(patch(&server, &url, 0, &[], b"unchecked").head.status, 204);
    follower.expect(b"unchecked");
    for wrong in ["sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "sha1 AAAA"] {
        let response = patch(&server, &url, 9, &[("Upload-Checksum", wrong)], &bytes);
        assert_eq!(response.head.status, 460, "{response:?}");
        assert_eq!(offset(&request(&server, "HEAD", &url, &[], b"").head), 9);
    }
    for unknown in ["md5 AAAA", "sha1", "sha1 ???"] {
        let response = patch(&server, &url, 9, &[("Upload-Checksum", unknown)], b"");
        assert_eq!(response.head.status, 400, "{unknown}: {response:?}");
    }
    // One that breaks off leaves nothing of it.
    let mut connection = server.connect();
    let sum = checksum(&bytes);
    let headers =
        [VERSION, OCTETS, ("Upload-Offset", "9"), ("Upload-Checksum", &sum), ("Content-Length", "3000000")];
    connection.request("PATCH", &url, &headers);
    let received = server.metric("tailwater_received_bytes_total");
    connection.send(&bytes[..2_000_000]);
    eventually("it has come", || server.metric("tailwater_received_bytes_total") >= received + 2_000_000);
    connection.reset();
    assert_eq!(offset(&request(&server, "HEAD", &url, &[], b"").head), 9);
    let response = patch(&server, &url, 9, &[("Upload-Checksum", &sum)], &bytes);
    assert_eq!((response.head.status, offset(&response.head)), (204, 3_000_009), "{response:?}");
    follower.expect_rest(&bytes);
    server.assert_verified_when_stopped();
}

/// By another implementation.
fn checksum(bytes: &[u8]) -> String {
    let mut program = Program::start(Command::new("python3").args([
        "-c",
        "import sys,hashlib,base64;print(base64.b64encode(hashlib.sha1(sys.stdin.buffer.read()).digest()).decode())",
    ]));
    program.send(bytes);
    let (output, status, _) = program.finish();
    assert!(status.success());
    format!("sha1 {}", String::from_utf8(output).unwrap().trim())
}

#[test]
fn an_upload_is_terminated_and_bad_requests_are_told_what_is_wrong() {
    let server = Server::start();
    let url = create(&server, "/_tus/b/k", &[("Upload-Length", "5")]);
    let mut follower = server.follow("/b/k");
    assert_eq!(patch(&server, &url, 0, &[], b"12").head.status, 204);
    follower.expect(b"12");
    assert_eq!(patch(&server, &url, 2, &[], b"longer").head.status, 400);
    assert_eq!(request(&server, "DELETE", &url, &[], b"").head.status, 204);
    assert_ne!(follower.rest().1, End::Clean);
    for method in ["HEAD", "PATCH", "DELETE"] {
        let response = request(&server, method, &url, &[OCTETS, ("Upload-Offset", "2")], b"");
        assert_eq!(response.head.status, 404, "{method}");
        assert_eq!(response.head.get("upload-offset"), None);
    }
    for (path, headers, status) in [
        ("/_tus/b/k", &[][..], 400),
        ("/_tus/b/k", &[("Upload-Length", "-1")], 400),
        ("/_tus/b/k", &[("Upload-Length", "5"), ("Upload-Defer-Length", "1")], 400),
        ("/_tus/b/k", &[("Upload-Defer-Length", "2")], 400),
        ("/_tus/b/k", &[("Upload-Length", "5"), ("Upload-Metadata", "filename ?")], 400),
        ("/_tus/b", &[("Upload-Length", "5")], 400),
        ("/_tus/b", &[("Upload-Length", "5"), ("Upload-Metadata", "filename Li4vYQ==")], 400),
        ("/_tus/", &[("Upload-Length", "5")], 400),
        ("/_tus/B_/k", &[("Upload-Length", "5")], 400),
    ] {
        let mut connection = server.connect();
        connection.request("POST", path, &[&[VERSION, ("Content-Length", "0")], headers].concat());
        assert_eq!(connection.response("POST").head.status, status, "{path} {headers:?}");
    }
    assert_eq!(request(&server, "POST", "/_tus/b/k", &[("Upload-Length", "5")], b"12345").head.status, 415);
    assert_eq!(server.head("/b/k").status, 404);
}

#[test]
fn an_upload_that_nobody_goes_on_with_expires_and_nothing_else_does() {
    let mut server = Server::start_with(&["--tus-expiry-seconds", "1", "--resume-window", "* resumable=0s"]);
    let url = create(&server, "/_tus/b/expiring", &[("Upload-Length", "5")]);
    assert_eq!(patch(&server, &url, 0, &[], b"12").head.status, 204);
    let mut plain = server.begin_put("/b/plain", None, &[]);
    plain.send(b"12");
    server.await_committed("/b/plain", 2);
    plain.close();
    let whole = request(&server, "POST", "/_tus/b/whole", &[OCTETS, ("Upload-Length", "5")], b"12345");
    assert_eq!(whole.head.status, 201);
    // What the catalog has not yet is not looked at: after a start it has all.
    assert!(server.terminate().success());
    server.restart();
    eventually("it has expired", || server.head("/b/expiring").status == 404);
    assert_eq!(request(&server, "HEAD", &url, &[], b"").head.status, 404);
    assert_eq!(server.metric("tailwater_uploads_expired_total"), 1);
    assert_eq!(server.get("/b/plain").body, b"12");
    server.assert_sealed("/b/whole", b"12345");
}
