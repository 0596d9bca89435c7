//! The client against a server that says exactly what a test tells it to, on real sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;

/// A server that runs one script; what the script returns, and its panics, come out of `join`.
struct Canned<T> {
    location: Location,
    script: JoinHandle<T>,
}

impl<T: Send + 'static> Canned<T> {
    fn start(script: impl FnOnce(TcpListener) -> T + Send + 'static) -> Canned<T> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let location = Location::parse(&format!("http://{}/b/k", listener.local_addr().unwrap())).unwrap();
        Canned { location, script: std::thread::spawn(move || script(listener)) }
    }

    fn join(self) -> T {
        self.script.join().unwrap()
    }
}

/// A server that takes connections one after the other, and answers one request on each with the same bytes.
fn answering(answer: &'static [u8], connections: usize) -> Canned<()> {
    Canned::start(move |listener| {
        for _ in 0..connections {
            let mut peer = accept(&listener);
            read_head(&mut peer);
            peer.write_all(answer).unwrap();
        }
    })
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.set_nodelay(true).unwrap();
    peer
}

/// Reads up to the empty line, and not a byte more.
fn read_head(peer: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(peer.read(&mut byte).unwrap(), 1, "the client closed in its head: {head:?}");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn limits() -> Limits {
    let patience = Duration::from_secs(5);
    Limits { connect: patience, send: patience, answer: patience, idle: Some(patience) }
}

/// GETs the location, to the end of the body.
async fn get(client: &Client, location: &Location) -> Result<(u16, Vec<u8>)> {
    let response = client.request(&Request::new("GET", location.target())).await?;
    let status = response.status();
    Ok((status, response.bytes().await?))
}

fn get_once(location: &Location) -> Result<(u16, Vec<u8>)> {
    run(16, async { get(&Client::new(location, limits())?, location).await }).unwrap()
}

#[test]
fn a_chunked_answer_split_at_every_byte() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n2\r\n, \r\n5\r\nworld\r\n0\r\n\r\n";
    let server = Canned::start(|listener| {
        for cut in 1..ANSWER.len() {
            let mut peer = accept(&listener);
            read_head(&mut peer);
            peer.write_all(&ANSWER[..cut]).unwrap();
            // Long enough for the client to have seen the first part alone.
            std::thread::sleep(Duration::from_millis(2));
            peer.write_all(&ANSWER[cut..]).unwrap();
        }
    });
    let location = server.location.clone();
    run(16, async {
        for cut in 1..ANSWER.len() {
            let client = Client::new(&location, limits()).unwrap();
            let answer = get(&client, &location).await.unwrap();
            assert_eq!(answer, (200, b"hello, world".to_vec()), "cut at {cut}");
        }
    })
    .unwrap();
    server.join();
}

#[test]
fn a_body_short_of_its_length_is_an_error() {
    let server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", 1);
    let error = get_once(&server.location).unwrap_err();
    assert!(matches!(&error, Error::Interrupted(what) if what.contains("after 5 bytes")), "{error:?}");
    server.join();
}

#[test]
fn a_chunked_body_without_its_last_chunk_is_an_error() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let server = answering(answer, 1);
        let error = get_once(&server.location).unwrap_err();
        assert!(matches!(error, Error::Interrupted(_)), "{error:?}");
        server.join();
    }
}

#[test]
fn a_reset_in_a_body_that_ends_with_the_connection_is_an_error() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        let mut byte = [0];
        // The rest of the head stays unread, so that closing is a reset.
        peer.read_exact(&mut byte).unwrap();
        peer.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    let error = get_once(&server.location).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error:?}");
    server.join();
}

#[test]
fn a_body_may_end_with_the_connection_where_no_length_was_given() {
    let server = answering(b"HTTP/1.0 200 OK\r\n\r\nhello", 1);
    assert_eq!(get_once(&server.location).unwrap(), (200, b"hello".to_vec()));
    server.join();
}

#[test]
fn an_answer_that_is_not_http_is_an_error() {
    for answer in [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n".as_slice(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let server = answering(answer, 1);
        let error = get_once(&server.location).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        server.join();
    }
}

#[test]
fn a_connection_is_used_again_after_each_kind_of_body() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        let mut methods = Vec::new();
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ] {
            methods.push(read_head(&mut peer).split(' ').next().unwrap().to_owned());
            peer.write_all(answer.as_bytes()).unwrap();
        }
        methods
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        for (method, status, body) in
            [("GET", 200, "ok"), ("GET", 200, "ok"), ("HEAD", 200, ""), ("DELETE", 204, ""), ("GET", 404, "")]
        {
            let response = client.request(&Request::new(method, location.target())).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.bytes().await.unwrap(), body.as_bytes());
        }
    })
    .unwrap();
    assert_eq!(server.join(), ["GET", "GET", "HEAD", "DELETE", "GET"]);
}

#[test]
fn a_connection_that_the_server_closed_meanwhile_is_not_an_error() {
    let server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 3);
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        get(&client, &location).await.unwrap();
        // At once: the close may be noticed before or after the request is sent.
        get(&client, &location).await.unwrap();
        // And later, when it is known.
        sleep(Duration::from_millis(20)).await;
        get(&client, &location).await.unwrap();
    })
    .unwrap();
    server.join();
}

#[test]
fn a_connection_with_bytes_that_nobody_asked_for_is_not_used_again() {
    let server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", 2);
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        for _ in 0..2 {
            assert_eq!(get(&client, &location).await.unwrap(), (200, b"ok".to_vec()));
        }
    })
    .unwrap();
    server.join();
}

#[test]
fn a_refusal_in_the_middle_of_an_upload_is_told_with_its_reason() {
    // Once with a server that closes with the rest of the body unread (a reset), once with one that lingers.
    for lingers in [false, true] {
        let server = Canned::start(move |listener| {
            let mut peer = accept(&listener);
            read_head(&mut peer);
            let mut some = [0; 1000];
            peer.read_exact(&mut some).unwrap();
            let problem = r#"{"title":"Insufficient Storage","detail":"the disk is full","status":507}"#;
            write!(
                peer,
                "HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/problem+json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{problem}",
                problem.len()
            )
            .unwrap();
            if lingers {
                peer.shutdown(std::net::Shutdown::Write).unwrap();
                let mut rest = Vec::new();
                // It ends when the client gives up, with or without a reset.
                let _ = peer.read_to_end(&mut rest);
                rest.len()
            } else {
                std::thread::sleep(Duration::from_millis(100));
                0
            }
        });
        let location = server.location.clone();
        let (error, sent) = run(16, async {
            let client = Client::new(&location, limits()).unwrap();
            let request = Request::new("PUT", location.target());
            let mut upload = client.upload(request, Length::Unknown, false).await.unwrap();
            let piece = vec![7; 64 * 1024];
            for _ in 0..100_000 {
                if let Err(error) = upload.send(&piece).await {
                    return (error, upload.sent());
                }
            }
            panic!("6 GiB were sent to a server that had refused them");
        })
        .unwrap();
        assert!(
            matches!(&error, Error::Refused { status: 507, detail } if detail == "the disk is full"),
            "{error:?}"
        );
        assert!(sent < 1 << 30, "{sent} bytes were sent");
        server.join();
    }
}

#[test]
fn a_refusal_is_noticed_while_there_is_nothing_to_send() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        read_head(&mut peer);
        peer.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let mut upload =
            client.upload(Request::new("PUT", location.target()), Length::Unknown, false).await.unwrap();
        let error = within(Duration::from_secs(5), upload.refused()).await.expect("it was not noticed");
        assert_eq!(error.status(), Some(408), "{error:?}");
        assert!(upload.send(b"more").await.is_err(), "an upload that was refused went on");
    })
    .unwrap();
    server.join();
}

#[test]
fn nothing_of_the_body_is_sent_before_the_server_said_continue() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        let head = read_head(&mut peer);
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut byte = [0];
        assert!(peer.read(&mut byte).is_err(), "the body came before it was asked for");
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 5];
        peer.read_exact(&mut body).unwrap();
        peer.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").unwrap();
        body
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let request = Request::new("PUT", location.target());
        let mut upload = client.upload(request, Length::Known(5), true).await.unwrap();
        upload.send(b"hel").await.unwrap();
        upload.send(b"lo").await.unwrap();
        assert_eq!(upload.finish().await.unwrap().status(), 201);
    })
    .unwrap();
    assert_eq!(&server.join(), b"hello");
}

#[test]
fn an_expectation_that_fails_is_an_error_and_no_body_is_sent() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        read_head(&mut peer);
        peer.write_all(
            b"HTTP/1.1 412 Precondition Failed\r\nContent-Type: application/problem+json\r\nContent-Length: 26\r\n\r\n\
              {\"detail\":\"it is\\nthere\"}  ",
        )
        .unwrap();
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).unwrap();
        rest.len()
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let request = Request::new("PUT", location.target()).field("If-None-Match", "*");
        let error = client.upload(request, Length::Known(5), true).await.err().expect("it was accepted");
        assert!(
            matches!(&error, Error::Refused { status: 412, detail } if detail == "it is there"),
            "{error:?}"
        );
    })
    .unwrap();
    assert_eq!(server.join(), 0);
}

#[test]
fn the_chunks_on_the_wire_are_what_was_sent() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        let head = read_head(&mut peer);
        assert!(head.starts_with("PUT /b/k HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
        assert!(
            head.contains("\r\nTransfer-Encoding: chunked\r\n") && !head.contains("Content-Length"),
            "{head}"
        );
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            peer.read_exact(&mut byte).unwrap();
            body.push(byte[0]);
        }
        peer.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8(body).unwrap()
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let mut upload =
            client.upload(Request::new("PUT", location.target()), Length::Unknown, false).await.unwrap();
        for piece in ["hello", "", "0123456789abcdef"] {
            upload.send(piece.as_bytes()).await.unwrap();
        }
        assert_eq!(upload.sent(), 21);
        upload.finish().await.unwrap().accepted().await.unwrap();
    })
    .unwrap();
    assert_eq!(server.join(), "5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n");
}

#[test]
fn a_dropped_upload_closes_the_connection_without_a_last_chunk() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        read_head(&mut peer);
        let mut body = Vec::new();
        peer.read_to_end(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let mut upload =
            client.upload(Request::new("PUT", location.target()), Length::Unknown, false).await.unwrap();
        upload.send(b"hello").await.unwrap();
        // A read of the answer is in flight now, and would hold the descriptor.
        assert!(within(Duration::from_millis(10), upload.refused()).await.is_none());
        drop(upload);
        sleep(Duration::from_millis(50)).await;
    })
    .unwrap();
    assert_eq!(server.join(), "5\r\nhello\r\n");
}

#[test]
fn a_send_that_is_dropped_midway_ends_the_upload() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        read_head(&mut peer);
        // Reads nothing for a while, so that the send gets stuck.
        std::thread::sleep(Duration::from_millis(300));
        let mut body = Vec::new();
        let _ = peer.read_to_end(&mut body);
        assert!(!body.ends_with(b"0\r\n\r\n"), "the body looks whole");
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let mut upload =
            client.upload(Request::new("PUT", location.target()), Length::Unknown, false).await.unwrap();
        let piece = vec![0; 64 << 20];
        assert!(
            within(Duration::from_millis(100), upload.send(&piece)).await.is_none(),
            "64 MiB went at once"
        );
        assert!(matches!(upload.send(b"more").await, Err(Error::Interrupted(_))));
    })
    .unwrap();
    server.join();
}

#[test]
fn a_chunk_that_nobody_waited_for_is_not_lost() {
    let server = Canned::start(|listener| {
        let mut peer = accept(&listener);
        read_head(&mut peer);
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for piece in 0..50 {
            std::thread::sleep(Duration::from_millis(4));
            write!(peer, "2\r\n{piece:02}\r\n").unwrap();
        }
        peer.write_all(b"0\r\n\r\n").unwrap();
    });
    let location = server.location.clone();
    run(16, async {
        let client = Client::new(&location, limits()).unwrap();
        let mut response = client.request(&Request::new("GET", location.target())).await.unwrap();
        let (mut body, mut dropped) = (Vec::new(), 0);
        loop {
            // Every second future is dropped while its read is in flight.
            match within(Duration::from_millis(2), response.chunk()).await {
                Some(Ok(Some(chunk))) => body.extend_from_slice(chunk),
                Some(Ok(None)) => break,
                Some(Err(error)) => panic!("{error}"),
                None => dropped += 1,
            }
        }
        let expected: String = (0..50).map(|piece| format!("{piece:02}")).collect();
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert!(dropped > 10, "only {dropped} futures were dropped: the test shows nothing");
    })
    .unwrap();
    server.join();
}

#[test]
fn limits_of_waiting_are_kept() {
    let server = Canned::start(|listener| {
        let mut silent = accept(&listener);
        read_head(&mut silent);
        let mut stalls = accept(&listener);
        read_head(&mut stalls);
        stalls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").unwrap();
        // Both end when the client has closed.
        for mut peer in [silent, stalls] {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
    });
    let location = server.location.clone();
    let started = Instant::now();
    run(16, async {
        let short = Duration::from_millis(50);
        let client = Client::new(&location, Limits { answer: short, ..limits() }).unwrap();
        let error = get(&client, &location).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { what: "an answer", .. }), "{error:?}");
        let client = client.with_limits(Limits { idle: Some(short), ..limits() });
        let error = get(&client, &location).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { what: "the next bytes of the body", .. }), "{error:?}");
    })
    .unwrap();
    assert!(started.elapsed() < Duration::from_secs(4));
    server.join();
}

#[test]
fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = Location::parse(&format!("http://{}/b/k", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let error = get_once(&location).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}
