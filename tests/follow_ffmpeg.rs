//! The main job with real programs: ffmpeg encodes a video and pushes it, curl and ffmpeg follow it meanwhile.
//!
//! What ffmpeg produced is known from a file that it writes beside: its tee protocol gives every write first to the
//! server and then to the file. So when the encoder is stopped (SIGSTOP), everything in the file was sent before,
//! and nothing can be on its way but what the server has: followers that then come up to the length of the file
//! were not waiting for anything that comes later.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};

use common::{Connection, End, Program, Server, assert_same, eventually, tool};

/// How long the video is, in seconds; it is encoded at the speed of a camera.
const SECONDS: u32 = 3;
/// How often the encoder is stopped to see that its followers have everything.
const STOPS: usize = 5;

/// ffmpeg that encodes a test picture in real time, and pushes it to a URL and to a file.
fn encode(method: &str, url: &str, file: &Path) -> Option<Program> {
    let escape = |text: &str| text.replace(':', "\\:");
    let source = format!("testsrc2=size=320x240:rate=25:duration={SECONDS}");
    let sinks = format!(
        "tee:[method={method}:chunked_post=1]{}|file\\:{}",
        escape(url),
        escape(file.to_str().unwrap())
    );
    let mut ffmpeg = tool("ffmpeg")?;
    ffmpeg.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", &source]);
    ffmpeg.args(["-c:v", "mpeg2video", "-g", "12", "-f", "mpegts", "-flush_packets", "1", &sinks]);
    Some(Program::start(&mut ffmpeg))
}

/// ffmpeg that takes a source as plain bytes and writes them out as they come.
fn ffmpeg_bytes(url: &str) -> Option<Program> {
    let mut ffmpeg = tool("ffmpeg")?;
    ffmpeg.args([
        "-hide_banner",
        "-nostdin",
        "-loglevel",
        "error",
        "-probesize",
        "32",
        "-analyzeduration",
        "0",
    ]);
    ffmpeg.args([
        "-f",
        "data",
        "-i",
        url,
        "-map",
        "0",
        "-c",
        "copy",
        "-f",
        "data",
        "-flush_packets",
        "1",
        "-",
    ]);
    Some(Program::start(&mut ffmpeg))
}

/// ffmpeg that plays a source (`-` is its input) and writes a line with a digest for each of its packets.
fn ffmpeg_frames(source: &str) -> Option<Program> {
    let mut ffmpeg = tool("ffmpeg")?;
    ffmpeg.args(["-hide_banner", "-loglevel", "error", "-probesize", "32768"]);
    ffmpeg.args(["-analyzeduration", "0", "-f", "mpegts", "-i", source, "-map", "0", "-c", "copy"]);
    ffmpeg.args(["-f", "framemd5", "-flush_packets", "1", "-"]);
    Some(Program::start(&mut ffmpeg))
}

fn written(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap_or_default()
}

/// A client that follows, and what it has so far.
enum Follower {
    Program(Program),
    Raw(common::Body),
}

struct Following {
    what: &'static str,
    follower: Follower,
    received: usize,
}

impl Following {
    fn program(what: &'static str, program: Program) -> Following {
        Following { what, follower: Follower::Program(program), received: 0 }
    }

    /// Waits until it has everything up to here.
    fn come_up_to(&mut self, all: &[u8]) {
        if all.len() <= self.received {
            return;
        }
        let expected = &all[self.received..];
        let found = match &mut self.follower {
            Follower::Program(program) => program.take(expected.len()),
            Follower::Raw(body) => body.take(expected.len()),
        };
        assert_same(&format!("{} from offset {} on", self.what, self.received), &found, expected);
        self.received = all.len();
    }

    /// Waits for the rest and for a clean end.
    fn come_to_the_end(self, all: &[u8]) {
        match self.follower {
            Follower::Program(program) => program.expect_rest(&all[self.received..]),
            Follower::Raw(mut body) => body.expect_rest(&all[self.received..]),
        }
    }
}

fn followers(server: &Server, path: &str) -> Option<Vec<Following>> {
    let url = server.url(path);
    let mut range = server.connect();
    range.request("GET", path, &[("Range", "bytes=0-")]);
    let mut followers = vec![
        Following::program("curl", Program::curl(&[&url])?),
        Following::program("curl with HTTP/1.0", Program::curl(&["--http1.0", &url])?),
        Following::program("curl from byte 0", Program::curl(&["--range", "0-", &url])?),
        Following::program("ffmpeg", ffmpeg_bytes(&url)?),
    ];
    let body = range.into_body("GET");
    assert_eq!((body.head.status, body.head.get("content-range")), (200, None), "{:?}", body.head);
    assert_eq!(body.head.get("transfer-encoding"), Some("chunked"));
    followers.push(Following { what: "bytes=0-", follower: Follower::Raw(body), received: 0 });
    Some(followers)
}

/// Pushes a video with this method; looks again and again that all who follow have all that was sent.
fn push_and_follow(method: &str) -> Option<()> {
    let server = Server::start();
    let (path, file) = ("/cameras/door.ts?wait=30", server.file_path("door.ts"));
    // All but the one that is started last were there before the encoder.
    let mut early = Program::curl(&[&server.url(path)])?;
    let mut encoder = encode(method, &server.url("/cameras/door.ts"), &file)?;
    let mut following = followers(&server, path)?;
    following.push(Following::program("curl that came first", {
        // Its first byte is the sign that the video has begun.
        assert_eq!(early.take(1), [0x47]);
        early
    }));
    following.last_mut().unwrap().received = 1;

    let mut seen = 0;
    for stop in 0..STOPS {
        eventually("the encoder has written more", || written(&file).len() > seen);
        encoder.pause();
        let sent = written(&file);
        assert!(encoder.is_running(), "the video was too short for this test");
        for follower in &mut following {
            follower.come_up_to(&sent);
        }
        let head = server.head("/cameras/door.ts");
        assert_eq!(head.get("tailwater-state"), Some("live"));
        let committed: usize = head.get("tailwater-committed").unwrap().parse().unwrap();
        assert!(committed >= sent.len());
        if stop == STOPS / 2 {
            let late = Program::curl(&[&server.url("/cameras/door.ts")])?;
            following.push(Following::program("curl that came late", late));
        }
        seen = sent.len();
        encoder.resume();
    }

    let (_, status, complaints) = encoder.finish();
    assert!(status.success(), "{status}: {complaints}");
    let all = written(&file);
    for follower in following {
        follower.come_to_the_end(&all);
    }
    server.assert_sealed("/cameras/door.ts", &all);
    Some(())
}

#[test]
fn a_video_put_by_ffmpeg_reaches_its_followers_before_more_of_it_is_sent() {
    push_and_follow("PUT");
}

#[test]
fn a_video_posted_by_ffmpeg_reaches_its_followers_before_more_of_it_is_sent() {
    push_and_follow("POST");
}

#[test]
fn ffmpeg_plays_a_video_while_it_is_recorded_and_sees_every_packet() {
    play_while_recording();
}

fn play_while_recording() -> Option<()> {
    let server = Server::start();
    let file: PathBuf = server.file_path("door.ts");
    let url = server.url("/cameras/door.ts");
    let encoder = encode("PUT", &url, &file)?;
    let mut player = ffmpeg_frames(&format!("{url}?wait=30"))?;
    // As much as the player wants to see before it begins, and then some.
    eventually("half of the video was sent", || written(&file).len() > 96 << 10);
    encoder.pause();
    // Nothing more is sent until the player has shown a packet.
    let first = player.line_from("0, ");
    encoder.resume();
    let (_, status, complaints) = encoder.finish();
    assert!(status.success(), "{status}: {complaints}");
    let (rest, status, complaints) = player.finish();
    assert!(status.success() && complaints.is_empty(), "{status}: {complaints}");

    let mut reference = ffmpeg_frames("-")?;
    reference.send(&written(&file));
    let first_expected = reference.line_from("0, ");
    let (rest_expected, status, complaints) = reference.finish();
    assert!(status.success(), "{status}: {complaints}");
    assert_eq!(first, first_expected);
    let (rest, rest_expected) = (String::from_utf8_lossy(&rest), String::from_utf8_lossy(&rest_expected));
    assert_eq!(rest, rest_expected);
    let packets = 1 + rest.lines().filter(|line| line.starts_with("0, ")).count();
    assert_eq!(packets, SECONDS as usize * 25, "one packet for each picture");
    Some(())
}

#[test]
fn an_encoder_that_comes_back_to_its_url_begins_anew_and_nobody_takes_the_break_for_an_end() {
    come_back();
}

/// DASH-IF's ingest, and what operators do: an encoder that was killed is started again with the same URL.
fn come_back() -> Option<()> {
    let server = Server::start();
    let path = "/cameras/door.ts";
    let (first, second) = (server.file_path("first.ts"), server.file_path("second.ts"));
    let encoder = encode("PUT", &server.url(path), &first)?;
    let mut cut_off = server.follow("/cameras/door.ts?wait=30");
    cut_off.take(10_000);
    encoder.pause();
    let sent = written(&first);
    encoder.kill();
    encoder.finish();
    let (rest, end) = cut_off.rest();
    assert_ne!(end, End::Clean);
    let received = 10_000 + rest.len();
    assert!((sent.len()..=written(&first).len()).contains(&received), "{received} of {}", sent.len());
    server.await_state(path, "interrupted");
    let kept = server.get(path);
    assert_same("what is kept", &kept.body, &written(&first)[..received]);

    let encoder = encode("PUT", &server.url(path), &second)?;
    server.await_state(path, "live");
    let mut follower = server.follow(path);
    let (_, status, complaints) = encoder.finish();
    assert!(status.success(), "{status}: {complaints}");
    let all = written(&second);
    follower.expect_rest(&all);
    server.assert_sealed(path, &all);
    Some(())
}

#[test]
fn a_whole_video_is_served_to_ffmpeg_as_it_was_recorded() {
    serve_the_recording();
}

/// With seeks: a player of a sealed recording looks at its end first, and goes back.
fn serve_the_recording() -> Option<()> {
    let server = Server::start();
    let file = server.file_path("short.ts");
    let mut ffmpeg = tool("ffmpeg")?;
    ffmpeg.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i"]);
    ffmpeg.args(["testsrc2=size=320x240:rate=25:duration=4", "-c:v", "mpeg2video", "-f", "mpegts"]);
    let (_, status, complaints) = Program::start(ffmpeg.arg(&file)).finish();
    assert!(status.success(), "{status}: {complaints}");
    let all = written(&file);
    server.put("/b/short.ts", &all);

    let packets = |source: &str| {
        let mut ffmpeg = tool("ffmpeg")?;
        ffmpeg.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-ss", "2", "-i", source]);
        ffmpeg.args(["-map", "0", "-c", "copy", "-f", "framemd5", "-"]);
        let (output, status, complaints) = Program::start(&mut ffmpeg).finish();
        assert!(status.success(), "{status}: {complaints}");
        Some(String::from_utf8(output).unwrap())
    };
    let served = packets(&server.url("/b/short.ts"))?;
    assert_eq!(served, packets(file.to_str().unwrap())?);
    assert!(served.lines().count() > 25, "{served}");
    let partial = "tailwater_requests_total{method=\"GET\",status=\"206\"}";
    eventually("ffmpeg has asked for a part", || server.try_metric(partial).is_some_and(|count| count > 0));
    Some(())
}

#[test]
fn a_client_that_asks_from_byte_0_on_of_an_empty_live_object_follows_it() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut connection: Connection = server.connect();
    connection.request("GET", "/b/k", &[("Range", "bytes=0-")]);
    let mut follower = connection.into_body("GET");
    assert_eq!(follower.head.status, 200, "{:?}", follower.head);
    assert_eq!(follower.head.get("content-range"), None);
    put.send(b"first");
    follower.expect(b"first");
    put.finish_created();
    follower.expect_rest(b"");
}
