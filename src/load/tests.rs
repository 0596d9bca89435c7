//! The tester against servers that lie, lose and stall: what it is for is to notice.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// One byte of each answer is another one.
    WrongByte,
    /// Answers end early, and cleanly.
    CleanButShort,
    /// What it said it had stored is not there.
    Lost,
    /// It says that it stored less than it got.
    StoredLess,
    /// It refuses every second upload.
    Refuses,
    /// It stalls for so long on the first download.
    Stalls(Duration),
}

/// Starts a server that keeps whole objects in memory. Its threads end with the connections.
fn serve(fault: Fault) -> Location {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = Location::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let objects = Arc::new(Mutex::new(Objects::default()));
    std::thread::spawn(move || {
        for peer in listener.incoming() {
            let objects = Arc::clone(&objects);
            std::thread::spawn(move || answer_all(peer.unwrap(), fault, &objects));
        }
    });
    location
}

#[derive(Default)]
struct Objects {
    bodies: HashMap<String, Vec<u8>>,
    puts: u64,
    gets: u64,
}

fn answer_all(peer: TcpStream, fault: Fault, objects: &Mutex<Objects>) {
    peer.set_nodelay(true).unwrap();
    let mut output = peer.try_clone().unwrap();
    let mut input = BufReader::new(peer);
    // Until the client closes.
    while let Some((method, target, body)) = read_request(&mut input, &mut output) {
        let stall = |gets: u64| match fault {
            Fault::Stalls(duration) if gets == 1 => std::thread::sleep(duration),
            _ => {}
        };
        let mut held = objects.lock().unwrap();
        let (status, body) = match method.as_str() {
            "PUT" => {
                held.puts += 1;
                let length = body.len() as u64 - u64::from(fault == Fault::StoredLess);
                if fault == Fault::Refuses && held.puts.is_multiple_of(2) {
                    ("507 Insufficient Storage", Vec::new())
                } else {
                    held.bodies.insert(target, body);
                    ("201 Created", format!("{{\"length\": {length}}}").into_bytes())
                }
            }
            "GET" => {
                held.gets += 1;
                let (gets, found) = (held.gets, held.bodies.get(&target).cloned());
                drop(held);
                stall(gets);
                match found {
                    None => ("404 Not Found", Vec::new()),
                    Some(_) if fault == Fault::Lost => ("404 Not Found", Vec::new()),
                    Some(mut body) => {
                        match fault {
                            Fault::WrongByte => *body.last_mut().unwrap() ^= 1,
                            Fault::CleanButShort => body.truncate(body.len() - 1),
                            _ => {}
                        }
                        ("200 OK", body)
                    }
                }
            }
            "DELETE" => match held.bodies.remove(&target) {
                Some(_) => ("200 OK", Vec::new()),
                None => ("404 Not Found", Vec::new()),
            },
            _ => ("404 Not Found", Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        output.write_all(&[head.into_bytes(), body].concat()).unwrap();
    }
}

/// Reads a request with its body, which may be chunked.
fn read_request(
    input: &mut BufReader<TcpStream>,
    output: &mut TcpStream,
) -> Option<(String, String, Vec<u8>)> {
    let mut line = || {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let field = line()?.to_ascii_lowercase();
        match field.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("transfer-encoding", _)) => is_chunked = true,
            Some(("expect", _)) => output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    while is_chunked {
        let mut size = String::new();
        input.read_line(&mut size).ok()?;
        let mut chunk = vec![0; usize::from_str_radix(size.trim_end(), 16).unwrap() + 2];
        input.read_exact(&mut chunk).ok()?;
        is_chunked = chunk.len() > 2;
        body.extend_from_slice(&chunk[..chunk.len() - 2]);
    }
    let mut words = first.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned(), body))
}

fn plan(workload: Workload, target: Location) -> Plan {
    Plan {
        workload,
        target,
        bucket: "load".to_owned(),
        duration: Duration::from_millis(200),
        rate_per_second: 100.0,
        streams: 3,
        followers: 1,
        piece_bytes: 1_000,
        connections: 4,
        size_bytes: 5_000,
        objects: 5,
        threads: 2,
        seed: 1,
        keep: false,
    }
}

fn errors(workload: Workload, fault: Fault) -> (u64, u64) {
    let report = run(plan(workload, serve(fault))).unwrap();
    let errors = &report.measurements.errors;
    (errors.verification, errors.failed)
}

#[test]
fn a_server_that_does_its_work_gives_no_errors_and_all_the_figures() {
    for (workload, series, count, verified_bytes) in [
        (Workload::Ingest, "pieces sent", 3 * 20, 3 * 20 * 1_000),
        (Workload::Put, "objects put", 20, 20 * 5_000),
        (Workload::Get, "objects got", 20, 20 * 5_000),
    ] {
        let report = run(plan(workload, serve(Fault::Nothing))).unwrap();
        let measurements = &report.measurements;
        assert_eq!(measurements.errors, measure::Errors::default(), "{workload:?}");
        assert_eq!(measurements.series[series].count, count, "{workload:?}");
        assert_eq!(measurements.verified_bytes, verified_bytes, "{workload:?}");
    }
}

#[test]
fn what_is_read_wrong_short_or_not_at_all_is_a_verification_error() {
    for workload in [Workload::Ingest, Workload::Put] {
        for fault in [Fault::WrongByte, Fault::CleanButShort, Fault::Lost, Fault::StoredLess] {
            let (verification, failed) = errors(workload, fault);
            assert!(verification >= 3, "{workload:?} did not notice {fault:?}");
            assert_eq!(failed, 0, "{workload:?}, {fault:?}");
        }
    }
    for fault in [Fault::WrongByte, Fault::CleanButShort] {
        assert_eq!(errors(Workload::Get, fault), (20, 0), "{fault:?}");
    }
    // There is nothing to measure if the set cannot be uploaded.
    assert!(run(plan(Workload::Get, serve(Fault::Refuses))).is_err());
}

#[test]
fn what_is_refused_is_counted_and_not_looked_for_afterwards() {
    assert_eq!(errors(Workload::Put, Fault::Refuses), (0, 10));
}

#[test]
fn a_stall_is_charged_for_everything_that_was_due_meanwhile() {
    let stall = Duration::from_millis(400);
    let plan = Plan { connections: 1, threads: 1, ..plan(Workload::Get, serve(Fault::Stalls(stall))) };
    let report = run(plan).unwrap();
    let series = &report.measurements.series["objects got"];
    assert_eq!(series.count, 20);
    // All 20 were due in the first 200 ms; none could begin before 400 ms.
    let shortest = Duration::from_nanos(series.latency.min());
    assert!(shortest >= Duration::from_millis(199), "one was charged with {shortest:?} only");
}

#[test]
fn what_was_made_is_removed_unless_it_is_kept() {
    for keep in [false, true] {
        let target = serve(Fault::Nothing);
        let run = Run::new(Plan { keep, ..plan(Workload::Put, target.clone()) });
        run.run().unwrap();
        let status = client::run(16, async {
            let client = Client::new(&target, Limits::default()).unwrap();
            let target = target.object("load", &format!("{}/00000000", run.prefix)).target();
            client.request(&Request::new("GET", target)).await.unwrap().status()
        });
        assert_eq!(status.unwrap(), if keep { 200 } else { 404 });
    }
}
