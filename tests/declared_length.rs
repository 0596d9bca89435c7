//! A declared length is a promise, not an end: the end is the seal.
//!
//! The writer is in this process, so that it can stop between its last byte and its seal; the follower is an HTTP
//! client.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::block_on;
use tailwater::serve::Server;
use tailwater::{Config, Context, Kind, Metadata, Name, State};

/// A server, a name, and metadata that declare five bytes.
fn start() -> (tempfile::TempDir, Server, Name, Metadata) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut config =
        Config { data: folder.path().join("data"), listen: any, admin: any, ..Config::default() };
    config.segment_bytes = Some(4 << 20);
    let server = Server::start(config).unwrap();
    let metadata = Metadata { declared_length: Some(5), ..Metadata::default() };
    (folder, server, Name::parse("d/object").unwrap(), metadata)
}

fn follow(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.data_address()).unwrap();
    stream.write_all(b"GET /d/object HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// Reads up to the end of the connection, or until as much of the body is there as wanted.
fn body_of(stream: &mut TcpStream, wanted: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let body = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &bytes[at + 4..]);
        if let Some(body) = body
            && body.len() >= wanted
        {
            return body.to_vec();
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return body.unwrap_or_default().to_vec(),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

#[test]
fn a_follower_has_the_last_byte_only_when_the_object_is_sealed() {
    let (_folder, server, name, metadata) = start();
    let context = Context::background();
    let mut writer = block_on(server.store().create(&context, name, metadata, false)).unwrap();
    let mut follower = follow(&server);
    block_on(writer.append(&context, "hello".into())).unwrap();
    assert_eq!(body_of(&mut follower, 4), b"hell");
    block_on(writer.seal(&context)).unwrap();
    assert_eq!(body_of(&mut follow(&server), 5), b"hello");
    let mut last = [0; 1];
    follower.read_exact(&mut last).unwrap();
    assert_eq!(&last, b"o");
    server.stop().unwrap();
}

#[test]
fn without_the_seal_all_the_bytes_are_no_clean_end() {
    let (_folder, server, name, metadata) = start();
    let context = Context::background();
    let mut writer = block_on(server.store().create(&context, name, metadata, false)).unwrap();
    let mut follower = follow(&server);
    block_on(writer.append(&context, "hello".into())).unwrap();
    assert_eq!(body_of(&mut follower, 4), b"hell");
    drop(writer);
    let mut rest = Vec::new();
    let _ = follower.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?} made the body whole, and nothing was sealed");
    server.stop().unwrap();
}

#[test]
fn neither_more_nor_less_than_was_declared_can_be_sealed() {
    let (_folder, server, name, metadata) = start();
    let context = Context::background();
    let mut writer = block_on(server.store().create(&context, name, metadata, false)).unwrap();
    let object = writer.object().clone();
    block_on(writer.append(&context, "hel".into())).unwrap();
    assert_eq!(block_on(writer.append(&context, "lo!".into())).unwrap_err().kind(), Kind::InvalidArgument);
    assert_eq!(object.committed(), 3, "nothing of what was refused is there");
    assert_eq!(block_on(writer.seal(&context)).unwrap_err().kind(), Kind::WrongState);
    let mut reader = block_on(server.store().open(&context, object.name(), 3)).unwrap();
    assert_eq!(block_on(reader.next(&context, 10)).unwrap_err().kind(), Kind::Interrupted);
    assert_eq!(object.state(), State::Interrupted);
    server.stop().unwrap();
}

#[test]
fn a_client_that_has_finished_sending_still_follows_to_the_end() {
    let (_folder, server, name, _) = start();
    let context = Context::background();
    let mut writer = block_on(server.store().create(&context, name, Metadata::default(), false)).unwrap();
    block_on(writer.append(&context, "one ".into())).unwrap();
    let mut follower = follow(&server);
    follower.shutdown(std::net::Shutdown::Write).unwrap();
    // The chunk's line, the four bytes and its end: from here on the follower waits for more.
    assert_eq!(body_of(&mut follower, 9), b"4\r\none \r\n");
    block_on(writer.append(&context, "two".into())).unwrap();
    block_on(writer.seal(&context)).unwrap();
    let mut rest = Vec::new();
    follower.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"3\r\ntwo\r\n0\r\n\r\n");
    server.stop().unwrap();
}
