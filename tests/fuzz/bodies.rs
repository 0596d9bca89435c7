//! What each fuzz target does with its input: it panics where something does not hold. `scripts/fuzz` runs them under
//! libFuzzer; `tests/fuzz_corpus.rs` runs the kept inputs and some generated ones in every `cargo test`.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{
    CONTENT_LENGTH, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
    TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Method};
use tailwater::log::format::{
    BLOCK_HEADER_LENGTH, BlockHeader, RECORD_HEADER_LENGTH, RecordHeader, SegmentHeader, record_length,
    records_of,
};
use tailwater::serve::chunked::{BODY_END, CHUNK_END, ChunkHead, Decoder, Step};
use tailwater::serve::conditional::{Outcome, Validators, evaluate, range_applies};
use tailwater::serve::head::{Framing, Head, Limits, Parsed, parse, parse_more};
use tailwater::serve::range::{Requested, Resolved};
use tailwater::serve::target::{Target, WAIT_MAX, split};
use tailwater::store::listing::LIMIT_MAX;
use tailwater::store::name::Name;

/// Choices that an input makes, without a bias to its beginning.
struct Choices(u64);

impl Choices {
    /// Takes the first bytes of the input for them, and leaves the rest.
    fn of(bytes: &[u8]) -> (Choices, &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(4));
        let seed = first.iter().fold(0u64, |seed, byte| seed << 8 | u64::from(*byte));
        (Choices(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1), rest)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound.max(1)
    }
}

/// The head of a request: it parses the same however it comes in, and what is accepted can be taken in one way only.
pub fn head(bytes: &[u8]) {
    let (mut choices, bytes) = Choices::of(bytes);
    let limits = match choices.below(4) {
        0 => Limits { head_length_max: 256, target_length_max: 64 },
        _ => Limits::default(),
    };
    let whole = parse(bytes, &limits);
    // As it comes in pieces, up to the first answer that is one.
    let (mut length, mut seen) = (0, 0);
    let by_pieces = loop {
        length = (length + 1 + choices.below(24)).min(bytes.len());
        let parsed = parse_more(&bytes[..length], seen, &limits);
        let of_these = parse(&bytes[..length], &limits);
        assert_eq!(text_of(&parsed), text_of(&of_these), "what was seen before changes the answer");
        match parsed {
            Ok(Parsed::Incomplete) if length < bytes.len() => seen = length,
            other => break other,
        }
    };
    match (&by_pieces, &whole) {
        // What is told early may be told in other words when there is more to see.
        (Err(_), Err(_)) => {}
        (Ok(_), Ok(_)) => assert_eq!(text_of(&by_pieces), text_of(&whole)),
        _ => panic!("by pieces {by_pieces:?}, and as a whole {whole:?}"),
    }
    match whole {
        Ok(Parsed::Complete { head, length }) => {
            check_head(&head, &bytes[..length], &limits);
            assert_eq!(text_of(&parse(&bytes[..length], &limits)), text_of(&by_pieces));
        }
        Ok(Parsed::Refused { problem, length, .. }) => {
            assert!(length <= bytes.len() && bytes[..length].ends_with(b"\r\n\r\n"));
            assert!(problem.status.is_client_error() || problem.status.is_server_error());
        }
        Ok(Parsed::Incomplete) => assert!(bytes.len() < limits.head_length_max),
        Err(problem) => assert!(problem.close, "the framing cannot be trusted: {problem:?}"),
    }
}

fn text_of(parsed: &impl std::fmt::Debug) -> String {
    format!("{parsed:?}")
}

fn check_head(head: &Head, bytes: &[u8], limits: &Limits) {
    assert!(bytes.len() <= limits.head_length_max && bytes.ends_with(b"\r\n\r\n"));
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    // No byte of it ends a line for one reader and not for another.
    let text = bytes.strip_suffix(b"\r\n\r\n").unwrap();
    let lines: Vec<&[u8]> = split_lines(text);
    assert!(lines.iter().all(|line| !line.contains(&b'\r') && !line.contains(&b'\n')));
    assert!(lines.iter().all(|line| !line.contains(&0) && !line.is_empty()));
    // The fields, by the plainest reader there is.
    let count = |name: &[u8]| {
        let is_it = |line: &&&[u8]| {
            let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
            line[..colon].eq_ignore_ascii_case(name)
        };
        lines[1..].iter().filter(is_it).count()
    };
    assert!(lines[1..].iter().all(|line| !matches!(line[0], b' ' | b'\t')), "no field is folded");
    let (lengths, codings) = (count(b"content-length"), count(b"transfer-encoding"));
    assert_eq!(head.headers.get_all(CONTENT_LENGTH).iter().count(), lengths);
    assert_eq!(head.headers.get_all(TRANSFER_ENCODING).iter().count(), codings);
    assert_eq!(head.headers.get_all(HOST).iter().count(), count(b"host"));
    match head.framing {
        Framing::None => assert_eq!((lengths, codings), (0, 0)),
        Framing::Length(length) => {
            assert_eq!((lengths, codings), (1, 0));
            let told = head.headers[CONTENT_LENGTH].to_str().unwrap();
            assert_eq!(told.parse::<u64>(), Ok(length));
        }
        Framing::Chunked => {
            assert_eq!((lengths, codings), (0, 1));
            assert!(head.headers[TRANSFER_ENCODING].as_bytes().eq_ignore_ascii_case(b"chunked"));
        }
    }
    assert!(head.target.allows(&head.method) && head.path.starts_with('/'));
    check_target(&head.target);
}

fn split_lines(mut text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = text.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&text[..end]);
        text = &text[end + 2..];
    }
    lines.push(text);
    lines
}

/// The target of a request: what comes out of it is a name, and leads back to it.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok((path, query)) = split(text) else { return };
    assert!(path.starts_with('/') && !path.contains(['?', '#']));
    let Ok(target) = Target::parse(path, query) else { return };
    check_target(&target);
    // Every byte escaped is the same target.
    let escaped: String = path
        .bytes()
        .enumerate()
        .map(|(at, byte)| match byte {
            b'/' => "/".to_owned(),
            // What is an escape stays one.
            b'%' => "%".to_owned(),
            _ if path.as_bytes()[..at].iter().rev().take(2).any(|before| *before == b'%') => {
                (byte as char).to_string()
            }
            byte => format!("%{byte:02x}"),
        })
        .collect();
    assert_eq!(Target::parse(&escaped, query).as_ref(), Ok(&target), "{path:?} and {escaped:?}");
}

fn check_target(target: &Target) {
    match target {
        Target::Service => {}
        Target::Bucket { bucket, query } => {
            assert!(Name::new(bucket, "k").is_ok());
            assert!((1..=LIMIT_MAX).contains(&query.limit));
            assert!(query.delimiter.as_ref().is_none_or(|delimiter| !delimiter.is_empty()));
        }
        Target::Object { name, query } => {
            assert!(Name::parse(name.as_str()).is_ok_and(|parsed| parsed == *name));
            assert_eq!(format!("{}/{}", name.bucket(), name.key()), name.as_str());
            assert!(!name.as_str().chars().any(char::is_control));
            assert!(name.as_str().split('/').all(|part| part != "." && part != ".."));
            assert!(query.wait.is_none_or(|wait| wait <= WAIT_MAX));
        }
        Target::Tus(target) => {
            let bucket = target.name.as_ref().map(|name| name.bucket());
            assert!(bucket.is_none_or(|bucket| target.bucket.as_deref() == Some(bucket)));
        }
    }
}

/// What came of a chunked body: its payload, and either how many bytes it took, nothing yet, or an error.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    payload: Vec<u8>,
    end: Result<Option<usize>, u16>,
}

/// Decodes a body that comes in pieces; some of the payload is received past the decoder.
fn decode(bytes: &[u8], mut piece_length: impl FnMut() -> usize, elsewhere: bool) -> Decoded {
    let mut decoder = Decoder::new();
    let mut payload = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let piece = &bytes[at..bytes.len().min(at + piece_length())];
        let expected = decoder.payload_remaining();
        if elsewhere && expected > 0 {
            let taken = piece.len().min(usize::try_from(expected).unwrap_or(usize::MAX));
            decoder.consume_payload(taken as u64);
            payload.extend_from_slice(&piece[..taken]);
            at += taken;
            continue;
        }
        match decoder.advance(piece) {
            Ok(Step::NeedMore) => at += piece.len(),
            Ok(Step::Data { skip, available }) => {
                assert!(available > 0 && skip + available <= piece.len());
                payload.extend_from_slice(&piece[skip..skip + available]);
                at += skip + available;
            }
            Ok(Step::End { consumed }) => {
                assert!(consumed <= piece.len() && decoder.is_ended());
                return Decoded { payload, end: Ok(Some(at + consumed)) };
            }
            Err(problem) => {
                assert!(problem.close && decoder.advance(b"0").is_err(), "an error stays");
                return Decoded { payload, end: Err(problem.status.as_u16()) };
            }
        }
    }
    assert!(!decoder.is_ended());
    Decoded { payload, end: Ok(None) }
}

/// A chunked body: the same for every way in which it comes in, and what is sent comes back.
pub fn chunked(bytes: &[u8]) {
    let (mut choices, bytes) = Choices::of(bytes);
    let whole = decode(bytes, || usize::MAX >> 1, false);
    assert_eq!(decode(bytes, || 1, false), whole, "byte by byte");
    assert_eq!(decode(bytes, || 1, true), whole, "byte by byte, past the decoder");
    let longest = 1 + choices.below(40);
    for elsewhere in [false, true] {
        assert_eq!(decode(bytes, || 1 + choices.below(longest), elsewhere), whole, "in pieces");
    }
    if let Ok(Some(consumed)) = whole.end {
        assert!(bytes[..consumed].ends_with(b"\r\n\r\n"));
        // Without its last byte it is no end.
        assert_eq!(decode(&bytes[..consumed - 1], || usize::MAX >> 1, false).end, Ok(None));
    }
    // The input as a payload, in chunks of our own making, with another request behind.
    let mut sent = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at((1 + choices.below(300)).min(rest.len()));
        sent.extend_from_slice(ChunkHead::new(chunk.len() as u64).as_bytes());
        sent.extend_from_slice(chunk);
        sent.extend_from_slice(CHUNK_END);
        rest = behind;
    }
    sent.extend_from_slice(BODY_END);
    let length = sent.len();
    sent.extend_from_slice(b"GET / HTTP/1.1\r\n");
    let decoded = decode(&sent, || 1 + choices.below(600), true);
    assert_eq!(decoded, Decoded { payload: bytes.to_vec(), end: Ok(Some(length)) });
}

/// Ranges and conditions: what is answered lies within the object, and the methods agree.
pub fn range(bytes: &[u8]) {
    let (mut choices, bytes) = Choices::of(bytes);
    let mut headers = HeaderMap::new();
    let names = [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((first, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(names[usize::from(*first) % names.len()].clone(), value);
    }
    let length = [0, 1, 1000, u64::MAX][choices.below(4)];
    let requested = Requested::from_headers(&headers);
    match requested.resolve(length) {
        Resolved::Whole => assert!(
            matches!(requested, Requested::Whole | Requested::Several)
                || (length == 0 && matches!(requested, Requested::From(0) | Requested::Suffix(1..)))
        ),
        Resolved::Satisfiable { first, last } => {
            assert!(first <= last && last < length);
            match &requested {
                Requested::From(from) => assert_eq!((first, last), (*from, length - 1)),
                Requested::Suffix(count) => {
                    assert_eq!((first, last), (length - length.min(*count), length - 1));
                }
                Requested::Span { first: from, last: to, .. } => {
                    assert_eq!((first, last), (*from, (*to).min(length - 1)));
                }
                Requested::Whole | Requested::Several => panic!("no part was asked for"),
            }
        }
        Resolved::Unsatisfiable => match &requested {
            Requested::From(first) | Requested::Span { first, .. } => assert!(*first >= length),
            Requested::Suffix(count) => assert_eq!(*count, 0),
            Requested::Whole | Requested::Several => panic!("the whole is always there"),
        },
    }
    if let Requested::Span { first, last, last_text } = &requested {
        assert!(first <= last && last_text.bytes().all(|byte| byte.is_ascii_digit()));
        assert_eq!(last_text.parse().unwrap_or(u64::MAX), *last);
    }

    let etags = [None, Some("\"1f\""), Some("\"\""), Some("\"W/\"")];
    let modified = [None, Some(UNIX_EPOCH), Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500))];
    let validators = Validators {
        etag: etags[choices.below(4)],
        modified: modified[choices.below(3)],
        exists: choices.below(4) > 0,
    };
    let [get, head, put, delete] = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE]
        .map(|method| evaluate(&method, &headers, &validators));
    assert_eq!(get, head);
    assert_eq!(put, delete);
    assert_ne!(put, Outcome::NotModified);
    if get == Outcome::PreconditionFailed {
        assert_eq!(put, get, "what fails for a GET fails for a PUT");
    }
    if headers.contains_key(IF_MATCH) && !validators.exists {
        assert_eq!((get, put), (Outcome::PreconditionFailed, Outcome::PreconditionFailed));
    }
    if !headers.keys().any(|name| *name != RANGE && *name != IF_RANGE) {
        assert_eq!((get, put), (Outcome::Proceed, Outcome::Proceed), "there is no condition");
    }
    let applies = range_applies(&headers, &validators);
    assert!(applies || headers.contains_key(IF_RANGE));
    // The very tag matches, whatever else is there.
    if let (Some(etag), true) = (validators.etag, validators.exists) {
        headers.remove(IF_MATCH);
        headers.remove(IF_UNMODIFIED_SINCE);
        headers.append(IF_NONE_MATCH, HeaderValue::from_static(etag));
        assert_eq!(evaluate(&Method::GET, &headers, &validators), Outcome::NotModified);
        assert_eq!(evaluate(&Method::PUT, &headers, &validators), Outcome::PreconditionFailed);
    }
}

/// Blocks, records and segment headers: nothing that is read leads out of the bytes that are there. What is written
/// comes back, and no damage gives other records than those.
pub fn log(bytes: &[u8]) {
    let _ = SegmentHeader::decode(bytes);
    let _ = RecordHeader::decode(bytes);
    if let Some(header) = BlockHeader::decode(bytes) {
        check_records(&header, bytes);
    }
    // Arbitrary bytes behind an arbitrary header.
    let (mut choices, rest) = Choices::of(bytes);
    let header = |length: usize, records: usize, choices: &mut Choices| BlockHeader {
        store: choices.0,
        epoch: 3,
        sequence: choices.below(1000) as u64,
        durable: 0,
        term_start: 0,
        term: 2,
        length: length as u32,
        records: records as u32,
        log: 1,
        position: 4096,
    };
    let lengths = [rest.len(), choices.below(rest.len() + 100), u32::MAX as usize];
    let records = [choices.below(8), u32::MAX as usize][choices.below(2)];
    let any = header(lengths[choices.below(3)], records, &mut choices);
    check_records(&any, rest);

    // A block made of the input, and then damaged.
    let mut block = vec![0; BLOCK_HEADER_LENGTH];
    let mut written = Vec::new();
    let mut payloads = rest;
    for number in 0..choices.below(6) {
        let (payload, behind) = payloads.split_at(choices.below(100).min(payloads.len()));
        payloads = behind;
        let header = RecordHeader {
            kind: tailwater::log::format::RecordKind::Append,
            continued: number % 2 == 1,
            length: payload.len() as u32,
            generation: choices.0,
            offset: number as u64,
            timestamp: 99,
        };
        let start = block.len();
        block.resize(start + RECORD_HEADER_LENGTH, 0);
        block.extend_from_slice(payload);
        header.encode(&mut block[start..]);
        block.resize(start + record_length(payload.len()), 0);
        written.push((header, payload.to_vec()));
    }
    let header = header(block.len(), written.len(), &mut choices);
    header.encode(&mut block);
    let read = |block: &[u8]| {
        let header = BlockHeader::decode(block)?;
        let records = check_records(&header, block)?;
        Some((header, records))
    };
    let (same, records) = read(&block).expect("what was written is read");
    assert_eq!(same, header);
    assert!(records.iter().all(|(_, _, is_whole)| *is_whole));
    assert!(
        records
            .iter()
            .map(|(header, payload, _)| (header, payload))
            .eq(written.iter().map(|(header, payload)| (header, payload)))
    );
    for _ in 0..4 {
        let mut damaged = block.clone();
        for _ in 0..=choices.below(3) {
            let at = choices.below(damaged.len());
            damaged[at] ^= 1 << choices.below(8);
        }
        if let Some((same, records)) = read(&damaged) {
            assert_eq!(same, header);
            assert_eq!(records.len(), written.len());
            for ((found, payload, is_whole), (header, original)) in records.iter().zip(&written) {
                assert_eq!(found, header);
                assert_eq!(*is_whole, payload == original, "damage that is not noticed");
            }
        }
    }
}

/// A record: its header, its payload, and whether that is what was written.
type Found = (RecordHeader, Vec<u8>, bool);

fn check_records(header: &BlockHeader, block: &[u8]) -> Option<Vec<Found>> {
    let records = records_of(header, block)?;
    let length = header.length as usize;
    assert!(length <= block.len() && records.len() == header.records as usize);
    let mut end = BLOCK_HEADER_LENGTH;
    let found = records.iter().map(|record| {
        assert_eq!(record.payload_start, end + RECORD_HEADER_LENGTH);
        end += record_length(record.header.length as usize);
        assert!(end <= length);
        (record.header, record.payload(block).to_vec(), record.is_whole)
    });
    let found = found.collect();
    assert_eq!(end, length);
    Some(found)
}
