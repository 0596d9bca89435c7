//! An upload that broke off goes on where it stopped, and its followers notice a pause at most: as the draft for
//! resumable uploads has it, and by `Content-Range`. Raw clients, several cores; `tus.rs` has tus and its clients.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Connection, End, Head, Program, Server, content, eventually, tool};

/// A server with several cores: what an upload is gone on with comes on any of them.
fn server(flags: &[&str]) -> Server {
    Server::start_with(&[&["--cores", "2"], flags].concat())
}

/// Begins an upload as the draft has it, and answers the connection and the URL to go on at.
fn begin(server: &Server, path: &str, headers: &[(&str, &str)]) -> (Connection, String) {
    let mut connection = server.connect();
    let all = [&[("Upload-Draft-Interop-Version", "8")], headers].concat();
    connection.request("PUT", path, &all);
    let interim = connection.head();
    assert_eq!(interim.status, 104, "{interim:?}");
    assert_eq!(interim.get("upload-draft-interop-version"), Some("8"));
    assert!(interim.get("upload-limit").is_some());
    let location = interim.get("location").unwrap().to_owned();
    (connection, location)
}

fn offset(head: &Head) -> u64 {
    head.get("upload-offset").unwrap_or_else(|| panic!("{head:?}")).parse().unwrap()
}

/// Goes on with an upload on a connection of its own.
fn patch(server: &Server, url: &str, at: u64, complete: &str, bytes: &[u8]) -> common::Response {
    let mut connection = server.connect();
    begin_patch(&mut connection, url, at, complete, bytes.len());
    connection.send(bytes);
    connection.response("PATCH")
}

fn begin_patch(connection: &mut Connection, url: &str, at: u64, complete: &str, length: usize) {
    connection.request(
        "PATCH",
        url,
        &[
            ("Content-Type", "application/partial-upload"),
            ("Upload-Offset", &at.to_string()),
            ("Upload-Complete", complete),
            ("Content-Length", &length.to_string()),
        ],
    );
}

#[test]
fn a_broken_upload_goes_on_on_any_core_and_its_followers_see_every_byte() {
    let server = server(&[]);
    for round in 0..8 {
        let path = format!("/b/broken-{round}");
        let bytes = content(round, 3_000_000);
        let length = bytes.len().to_string();
        let (mut upload, url) =
            begin(&server, &path, &[("Content-Length", &length), ("Upload-Complete", "?1")]);
        let mut follower = server.follow(&path);
        upload.send(&bytes[..1_000_000]);
        follower.expect(&bytes[..900_000]);
        if round % 2 == 0 {
            upload.reset();
        } else {
            drop(upload);
        }
        let mut at = 0;
        // In pieces, each of which breaks off, each on another connection.
        for end in [1_500_000, 2_000_000, 2_500_000] {
            let head = server.head(&url);
            assert_eq!((head.status, head.get("upload-complete")), (204, Some("?0")), "{head:?}");
            assert_eq!(head.get("upload-length"), Some(length.as_str()));
            assert_eq!(head.get("cache-control"), Some("no-store"));
            let now = offset(&head);
            assert!(now >= at, "an offset never goes back");
            at = now;
            let mut connection = server.connect();
            begin_patch(&mut connection, &url, at, "?1", bytes.len() - at as usize);
            connection.send(&bytes[at as usize..end]);
            follower.expect(&bytes[follower.received() as usize..end - 100_000]);
        }
        let at = offset(&server.head(&url)) as usize;
        let response = patch(&server, &url, at as u64, "?1", &bytes[at..]);
        assert_eq!((response.head.status, response.head.get("upload-complete")), (201, Some("?1")));
        assert_eq!(response.json()["length"], bytes.len());
        let seen = follower.received() as usize;
        follower.expect_rest(&bytes[seen..]);
        server.assert_sealed(&path, &bytes);
        let head = server.head(&url);
        assert_eq!((head.get("upload-complete"), offset(&head)), (Some("?1"), bytes.len() as u64));
    }
    assert_eq!(server.metric("tailwater_writers_awaited"), 0);
    assert!(server.metric("tailwater_writers_resumed_total") >= 8 * 4);
}

#[test]
fn a_connection_that_hangs_is_replaced_by_the_one_that_asks_for_the_offset() {
    let server = server(&[]);
    let bytes = content(1, 200_000);
    let (mut hanging, url) =
        begin(&server, "/b/hanging", &[("Content-Length", "200000"), ("Upload-Complete", "?1")]);
    hanging.send(&bytes[..100_000]);
    server.await_committed("/b/hanging", 100_000);
    assert_eq!(offset(&server.head(&url)), 100_000);
    assert_ne!(hanging.ended(), End::Clean);
    // Also by one that goes on without asking.
    let mut second = server.connect();
    begin_patch(&mut second, &url, 100_000, "?1", 100_000);
    second.send(&bytes[100_000..150_000]);
    server.await_committed("/b/hanging", 150_000);
    assert_eq!(patch(&server, &url, 150_000, "?1", &bytes[150_000..]).head.status, 201);
    assert_ne!(second.ended(), End::Clean);
    server.assert_sealed("/b/hanging", &bytes);
}

#[test]
fn an_upload_in_parts_is_complete_when_its_client_says_so() {
    let server = server(&[]);
    let bytes = content(2, 30_000);
    let mut connection = server.connect();
    connection.request("POST", "/b/parts", &[("Content-Length", "10000"), ("Upload-Complete", "?0")]);
    connection.send(&bytes[..10_000]);
    let created = connection.response("POST");
    assert_eq!((created.head.status, offset(&created.head)), (201, 10_000), "{created:?}");
    assert_eq!((created.head.get("upload-complete"), created.head.get("etag")), (Some("?0"), None));
    let url = created.head.get("location").unwrap().to_owned();
    let mut follower = server.follow("/b/parts");
    // On the same connection, as most clients do.
    begin_patch(&mut connection, &url, 10_000, "?0", 10_000);
    connection.send(&bytes[10_000..20_000]);
    let response = connection.response("PATCH");
    assert_eq!((response.head.status, offset(&response.head)), (204, 20_000), "{response:?}");
    // The offset may be the length, and the upload incomplete all the same.
    assert_eq!(patch(&server, &url, 20_000, "?0", &bytes[20_000..]).head.status, 204);
    assert_eq!(server.head("/b/parts").get("tailwater-state"), Some("live"));
    assert_eq!(patch(&server, &url, 30_000, "?1", b"").head.status, 201);
    follower.expect_rest(&bytes);
}

#[test]
fn a_wrong_offset_is_told_the_right_one_and_what_is_wrong_with_a_request_is_said() {
    let server = server(&[]);
    let bytes = content(3, 1_000);
    let (mut upload, url) =
        begin(&server, "/b/wrong", &[("Content-Length", "1000"), ("Upload-Complete", "?1")]);
    upload.send(&bytes[..500]);
    server.await_committed("/b/wrong", 500);
    drop(upload);
    for wrong in [0, 499, 501, 1 << 40] {
        let refused = patch(&server, &url, wrong, "?1", b"");
        assert_eq!((refused.head.status, offset(&refused.head)), (409, 500), "{refused:?}");
        assert_eq!(refused.json()["expected-offset"], 500);
        assert_eq!(refused.json()["provided-offset"], wrong);
        assert!(refused.json()["type"].as_str().unwrap().ends_with("#mismatching-upload-offset"));
    }
    let too_long = patch(&server, &url, 500, "?1", &bytes);
    assert_eq!(too_long.head.status, 400, "{too_long:?}");
    assert!(too_long.json()["type"].as_str().unwrap().ends_with("#inconsistent-upload-length"));
    for (headers, status) in [
        (&[("Upload-Offset", "500"), ("Upload-Complete", "?1")][..], 415),
        (&[("Content-Type", "application/partial-upload"), ("Upload-Complete", "?1")], 400),
        (&[("Content-Type", "application/partial-upload"), ("Upload-Offset", "500")], 400),
        (
            &[
                ("Content-Type", "application/partial-upload"),
                ("Upload-Offset", "-5"),
                ("Upload-Complete", "?1"),
            ],
            400,
        ),
    ] {
        assert_eq!(server.request("PATCH", &url, headers).head.status, status, "{headers:?}");
    }
    assert_eq!(server.request("PATCH", "/b/wrong", &[]).head.status, 405);
    assert_eq!(server.head("/b/wrong?upload=ffff").status, 404);
    assert_eq!(server.head("/b/other?upload=1").status, 404);
    assert_eq!(server.head("/b/wrong?upload=x").status, 400);
    // All of that has cost the upload nothing.
    assert_eq!(patch(&server, &url, 500, "?1", &bytes[500..]).head.status, 201);
    let again = patch(&server, &url, 1_000, "?1", b"");
    assert_eq!((again.head.status, again.head.get("upload-complete")), (400, Some("?1")), "{again:?}");
    server.assert_sealed("/b/wrong", &bytes);
    let options = server.request("OPTIONS", "/b/wrong", &[]);
    assert_eq!(options.head.status, 204);
    assert_eq!(options.head.get("accept-patch"), Some("application/partial-upload"));
}

#[test]
fn a_writer_that_does_not_come_back_in_time_ends_its_followers_and_can_go_on_all_the_same() {
    let server = server(&["--resume-window", "b resumable=1s"]);
    let bytes = content(4, 2_000);
    let (mut upload, url) =
        begin(&server, "/b/late", &[("Content-Length", "2000"), ("Upload-Complete", "?1")]);
    upload.send(&bytes[..1_000]);
    let mut follower = server.follow("/b/late");
    follower.expect(&bytes[..1_000]);
    drop(upload);
    assert_ne!(follower.rest(), (Vec::new(), End::Clean), "an interrupted object has no clean end");
    server.await_state("/b/late", "interrupted");
    let kept = server.get("/b/late");
    assert_eq!((kept.body.as_slice(), kept.end), (&bytes[..1_000], End::Clean));
    assert_eq!(server.metric("tailwater_writers_given_up_total"), 1);
    assert_eq!(offset(&server.head(&url)), 1_000);
    // From then on it is live again, for who follows.
    let mut connection = server.connect();
    begin_patch(&mut connection, &url, 1_000, "?1", 1_000);
    connection.send(&bytes[1_000..1_500]);
    server.await_state("/b/late", "live");
    let mut follower = server.follow("/b/late");
    follower.expect(&bytes[..1_500]);
    connection.send(&bytes[1_500..]);
    assert_eq!(connection.response("PATCH").head.status, 201);
    follower.expect_rest(&bytes[1_500..]);
    server.assert_sealed("/b/late", &bytes);
}

#[test]
fn a_cancelled_upload_is_gone_and_so_is_a_replaced_one() {
    let server = server(&[]);
    let (mut upload, url) =
        begin(&server, "/b/cancelled", &[("Content-Length", "9"), ("Upload-Complete", "?1")]);
    upload.send("some");
    let mut follower = server.follow("/b/cancelled");
    follower.expect(b"some");
    drop(upload);
    assert_eq!(server.request("DELETE", &url, &[]).head.status, 204);
    assert_eq!(server.head(&url).status, 404);
    assert_eq!(server.head("/b/cancelled").status, 404);
    assert_eq!(server.request("DELETE", &url, &[]).head.status, 404);
    assert_ne!(follower.rest().1, End::Clean);

    let (mut upload, url) =
        begin(&server, "/b/replaced", &[("Content-Length", "9"), ("Upload-Complete", "?1")]);
    upload.send("some");
    drop(upload);
    server.put("/b/replaced", b"all of it");
    // It may still go on, and is superseded by what came after it.
    let at = offset(&server.head(&url));
    assert_eq!(patch(&server, &url, at, "?1", &b"something"[at as usize..]).head.status, 201);
    server.assert_sealed("/b/replaced", b"all of it");
    eventually("the older one is gone", || server.head(&url).status == 404);
}

#[test]
fn an_interrupted_upload_goes_on_after_a_restart_and_after_a_kill() {
    let mut server = server(&["--drain-seconds", "0"]);
    let bytes = content(5, 4_000_000);
    let (mut upload, url) =
        begin(&server, "/b/restarted", &[("Content-Length", "4000000"), ("Upload-Complete", "?1")]);
    upload.send(&bytes[..500_000]);
    server.await_committed("/b/restarted", 500_000);
    let mut at = 500_000;
    for (round, cores) in ["1", "2", "2", "1"].into_iter().enumerate() {
        match round % 2 {
            0 => server.kill(),
            _ => assert!(server.terminate().success()),
        }
        server.assert_verified();
        server.assert_verified_without_catalog();
        server.set_flag("--cores", cores);
        server.restart();
        let kept = server.head("/b/restarted");
        assert_eq!(kept.get("tailwater-state"), Some("interrupted"));
        let now = offset(&server.head(&url)) as usize;
        assert!(now >= at, "what was acknowledged is there: {now}, {at}");
        assert_eq!(kept.get("tailwater-committed"), Some(now.to_string().as_str()));
        at = now + 500_000;
        let mut connection = server.connect();
        begin_patch(&mut connection, &url, now as u64, "?1", bytes.len() - now);
        connection.send(&bytes[now..at]);
        server.await_committed("/b/restarted", at as u64);
        // A reader that had come this far before goes on with a range.
        let range = format!("bytes={}-{}", now - 1000, u64::MAX);
        let mut reader = server.connect();
        reader.request("GET", "/b/restarted", &[("Range", &range)]);
        reader.into_body("GET").expect(&bytes[now - 1000..at]);
    }
    let response = patch(&server, &url, at as u64, "?1", &bytes[at..]);
    assert_eq!(response.head.status, 201, "{response:?}");
    server.assert_sealed("/b/restarted", &bytes);
    assert!(server.terminate().success());
    server.assert_verified();
    server.assert_verified_without_catalog();
    std::fs::remove_file(server.data_path().join("catalog")).unwrap();
    server.restart();
    server.assert_sealed("/b/restarted", &bytes);
}

#[test]
fn a_plain_put_is_awaited_where_the_bucket_says_so() {
    let server = server(&["--resume-window", "cameras plain=30s"]);
    for (path, state) in [("/cameras/1", "live"), ("/other/1", "interrupted")] {
        let mut put = server.begin_put(path, None, &[]);
        put.send(b"one");
        server.await_committed(path, 3);
        put.reset();
        match state {
            "live" => eventually("it is awaited", || server.metric("tailwater_writers_awaited") == 1),
            _ => server.await_state(path, state),
        }
        assert_eq!(server.head(path).get("tailwater-state"), Some(state), "{path}");
    }
    let mut follower = server.follow("/cameras/1");
    let part = server.try_put("/cameras/1", b"two", &[("Content-Range", "bytes 3-5/6")]);
    assert_eq!(part.head.status, 201, "{part:?}");
    follower.expect_rest(b"onetwo");
}

#[test]
fn parts_by_content_range_come_in_order() {
    let server = server(&[]);
    let bytes = content(6, 400);
    let put = |range: &str, bytes: &[u8]| server.try_put("/b/ranged", bytes, &[("Content-Range", range)]);
    let refused = put("bytes 100-199/*", &bytes[100..200]);
    assert_eq!((refused.head.status, offset(&refused.head)), (409, 0), "nothing was begun: {refused:?}");
    assert_eq!(put("bytes 0-99/*", &bytes[..100]).head.status, 201);
    let mut follower = server.follow("/b/ranged");
    let response = put("bytes 100-199/*", &bytes[100..200]);
    assert_eq!((response.head.status, offset(&response.head)), (200, 200), "{response:?}");
    for wrong in ["bytes 100-199/*", "bytes 300-399/*"] {
        let refused = put(wrong, &bytes[..100]);
        assert_eq!((refused.head.status, offset(&refused.head)), (409, 200), "{wrong}: {refused:?}");
    }
    for wrong in ["bytes 200-299/250", "bytes 200-298/*", "bytes 200/400", "lines 200-299/*"] {
        assert_eq!(put(wrong, &bytes[200..300]).head.status, 400, "{wrong}");
    }
    follower.expect(&bytes[..200]);
    let last = put("bytes 200-399/400", &bytes[200..]);
    assert_eq!((last.head.status, last.json()["state"].as_str()), (201, Some("sealed")), "{last:?}");
    follower.expect_rest(&bytes[200..]);
    assert_eq!(put("bytes 400-499/*", &bytes[..100]).head.status, 409, "it is complete");
    // An end that is told afterwards.
    assert_eq!(server.try_put("/b/told", &bytes, &[("Content-Range", "bytes 0-399/*")]).head.status, 201);
    assert_eq!(server.head("/b/told").get("tailwater-state"), Some("live"));
    assert_eq!(server.try_put("/b/told", b"", &[("Content-Range", "bytes */400")]).head.status, 201);
    server.assert_sealed("/b/told", &bytes);
}

/// `souphttpclientsink` sends many PUTs, the first of them without a range.
#[test]
fn what_gstreamer_sends_is_one_object_that_can_be_followed() {
    let Some(_) = tool("gst-launch-1.0") else { return };
    let server = server(&[]);
    let url = server.url("/b/gstreamer");
    let mut command = std::process::Command::new("gst-launch-1.0");
    let source =
        ["-q", "fakesrc", "num-buffers=40", "filltype=pattern-span", "sizetype=fixed", "sizemax=50000"];
    command.args(source).args(["datarate=2000000", "!", "souphttpclientsink"]).arg(format!("location={url}"));
    let program = Program::start(&mut command);
    eventually("it has begun", || server.head("/b/gstreamer").status == 200);
    let mut follower = server.follow("/b/gstreamer");
    let (_, status, complaints) = program.finish();
    assert!(status.success(), "{complaints}");
    // What was sent last may be on its way when the program ends.
    let length = server.head("/b/gstreamer").get("tailwater-committed").unwrap().parse::<u64>().unwrap();
    assert!(length > 1_000_000, "{length}");
    let total = format!("bytes */{length}");
    assert_eq!(server.try_put("/b/gstreamer", b"", &[("Content-Range", &total)]).head.status, 201);
    let (bytes, end) = follower.rest();
    assert_eq!((bytes.len() as u64, end), (length, End::Clean));
}
