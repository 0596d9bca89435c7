//! The chunked transfer coding: RFC 9112, section 7.1.
//!
//! [`Decoder`] reads the framing of a body and performs no I/O. It is given the bytes as they arrive and says
//! where among them the payload is; the payload of a chunk whose size it knows need not pass through it at
//! all: [`Decoder::payload_remaining`] tells how many bytes to receive straight to where they belong, and
//! [`Decoder::consume_payload`] takes note of those that came.
//!
//! It is strict where two readers of one body could differ: sizes are hex digits only, lines end in CR LF only,
//! and chunk extensions, which nobody needs, are ignored but bounded. Trailers are checked and dropped. After
//! an error nothing more can be had from the body: the same error comes again.

use super::problem::Problem;

/// The longest part of a chunk's line that is not its size, in bytes.
pub const EXTENSION_LENGTH_MAX: u32 = 4 * 1024;
/// The longest trailer section, in bytes.
pub const TRAILERS_LENGTH_MAX: u32 = 8 * 1024;
/// The most hex digits in a chunk's size.
const SIZE_DIGITS_MAX: u8 = 16;
/// The largest chunk; the same as the largest body that a `Content-Length` may announce.
pub const CHUNK_LENGTH_MAX: u64 = super::head::BODY_LENGTH_MAX;

/// What ends the payload of every chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What ends a body: only ever sent at the real end.
pub const BODY_END: &[u8] = b"0\r\n\r\n";

/// What [`Decoder::advance`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All bytes were framing, and are taken. Where [`Decoder::payload_remaining`] is not zero, payload is next.
    NeedMore,
    /// Payload begins behind `skip` bytes of framing, and goes on for `available` bytes. Both are taken: the
    /// next call gets what is behind them.
    Data {
        /// The framing before the payload.
        skip: usize,
        /// The payload; never zero.
        available: usize,
    },
    /// The body is complete. What is behind `consumed` belongs to the next request.
    End {
        /// The framing that ended the body.
        consumed: usize,
    },
}

/// Where in a chunked body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the size of a chunk, of which so many digits are known.
    Size { digits: u8 },
    /// Behind the size: white space that only an extension may follow.
    SizeSpace { length: u32 },
    /// In a chunk extension.
    Extension { length: u32 },
    /// Behind the CR of a chunk's line.
    SizeLineFeed,
    /// In the payload, of which `remaining` bytes are to come.
    Payload,
    /// Behind the payload, before its CR.
    PayloadCarriageReturn,
    /// Behind the payload, before its LF.
    PayloadLineFeed,
    /// At the beginning of a trailer, or of the empty line that ends the body.
    TrailerStart,
    /// In the name of a trailer.
    TrailerName,
    /// In the value of a trailer.
    TrailerValue,
    /// Behind the CR of a trailer.
    TrailerLineFeed,
    /// Behind the CR of the empty line.
    EndLineFeed,
    /// Behind the body.
    Ended,
    /// Behind an error.
    Failed(Fault),
}

/// What can be wrong with a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Size,
    SizeTooLarge,
    SizeLine,
    Extension,
    ExtensionTooLong,
    PayloadEnd,
    Trailer,
    TrailersTooLong,
}

impl Fault {
    fn problem(self) -> Problem {
        match self {
            Fault::Size => Problem::bad_framing("a chunk's size is hex digits"),
            Fault::SizeTooLarge => Problem::bad_framing("a chunk's size is too large"),
            Fault::SizeLine => Problem::bad_framing("a chunk's line ends in CR LF"),
            Fault::Extension => Problem::bad_framing("a chunk extension has a byte that cannot be there"),
            Fault::ExtensionTooLong => {
                Problem::bad_framing(format!("a chunk extension has at most {EXTENSION_LENGTH_MAX} bytes"))
            }
            Fault::PayloadEnd => Problem::bad_framing("a chunk is longer than its size says"),
            Fault::Trailer => {
                Problem::bad_framing("a trailer is a name, a colon, and a value, ended by CR LF")
            }
            Fault::TrailersTooLong => Problem::fields_too_large(format!(
                "the trailers have at most {TRAILERS_LENGTH_MAX} bytes together"
            )),
        }
    }
}

/// The state of a chunked body while it is read.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    /// The size of the current chunk while its line is read, then what is left of its payload.
    remaining: u64,
    /// The bytes of trailers so far.
    trailers_length: u32,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a body.
    pub fn new() -> Decoder {
        Decoder { state: State::Size { digits: 0 }, remaining: 0, trailers_length: 0 }
    }

    /// Reads on in `bytes`, which begin where the last step ended.
    ///
    /// # Errors
    /// 400 or 431, both of which end the connection.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Step, Problem> {
        for (position, byte) in bytes.iter().enumerate() {
            match self.state {
                State::Payload => return Ok(self.take_payload(position, bytes.len() - position)),
                State::Ended => return Ok(Step::End { consumed: position }),
                _ => {}
            }
            match self.take_framing(*byte) {
                Ok(state) => self.state = state,
                Err(fault) => {
                    self.state = State::Failed(fault);
                    return Err(fault.problem());
                }
            }
        }
        match self.state {
            State::Failed(fault) => Err(fault.problem()),
            State::Ended => Ok(Step::End { consumed: bytes.len() }),
            _ => Ok(Step::NeedMore),
        }
    }

    /// How much of the current chunk's payload is to come; zero where framing is next.
    pub fn payload_remaining(&self) -> u64 {
        if self.state == State::Payload { self.remaining } else { 0 }
    }

    /// Takes note of payload that was received elsewhere.
    ///
    /// # Panics
    /// If that is more than [`Decoder::payload_remaining`].
    pub fn consume_payload(&mut self, length: u64) {
        assert!(length <= self.payload_remaining(), "no more than a chunk's payload is received as such");
        if length > 0 {
            self.remaining -= length;
            if self.remaining == 0 {
                self.state = State::PayloadCarriageReturn;
            }
        }
    }

    /// Whether the body is complete.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    fn take_payload(&mut self, skip: usize, length: usize) -> Step {
        let available = usize::try_from(self.remaining).map_or(length, |remaining| remaining.min(length));
        self.consume_payload(available as u64);
        Step::Data { skip, available }
    }

    /// The state behind one byte of framing.
    fn take_framing(&mut self, byte: u8) -> Result<State, Fault> {
        match self.state {
            State::Size { digits } => match byte {
                b'\r' if digits > 0 => Ok(State::SizeLineFeed),
                b';' if digits > 0 => Ok(State::Extension { length: 1 }),
                b' ' | b'\t' if digits > 0 => Ok(State::SizeSpace { length: 1 }),
                _ => self.take_size_digit(digits, byte),
            },
            State::SizeSpace { length } => match byte {
                b';' => extension(length),
                b' ' | b'\t' if length < EXTENSION_LENGTH_MAX => Ok(State::SizeSpace { length: length + 1 }),
                b' ' | b'\t' => Err(Fault::ExtensionTooLong),
                _ => Err(Fault::Size),
            },
            State::Extension { length } => match byte {
                b'\r' => Ok(State::SizeLineFeed),
                _ if is_text(byte) => extension(length),
                _ => Err(Fault::Extension),
            },
            State::SizeLineFeed if byte != b'\n' => Err(Fault::SizeLine),
            State::SizeLineFeed if self.remaining == 0 => Ok(State::TrailerStart),
            State::SizeLineFeed => Ok(State::Payload),
            State::PayloadCarriageReturn if byte == b'\r' => Ok(State::PayloadLineFeed),
            State::PayloadLineFeed if byte == b'\n' => Ok(State::Size { digits: 0 }),
            State::PayloadCarriageReturn | State::PayloadLineFeed => Err(Fault::PayloadEnd),
            State::EndLineFeed if byte == b'\n' => Ok(State::Ended),
            State::EndLineFeed => Err(Fault::Trailer),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLineFeed),
            State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLineFeed => {
                self.take_trailer(byte)
            }
            State::Failed(fault) => Err(fault),
            // Neither is framing; `advance` sees to both before it comes here.
            State::Payload | State::Ended => Ok(self.state),
        }
    }

    fn take_size_digit(&mut self, digits: u8, byte: u8) -> Result<State, Fault> {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return Err(Fault::Size),
        };
        if digits == SIZE_DIGITS_MAX {
            return Err(Fault::SizeTooLarge);
        }
        // At most CHUNK_LENGTH_MAX before, so this fits after the check of the four bits that are shifted out.
        let shifted = self.remaining.checked_mul(16).ok_or(Fault::SizeTooLarge)?;
        self.remaining = shifted | u64::from(value);
        if self.remaining > CHUNK_LENGTH_MAX {
            return Err(Fault::SizeTooLarge);
        }
        Ok(State::Size { digits: digits + 1 })
    }

    fn take_trailer(&mut self, byte: u8) -> Result<State, Fault> {
        self.trailers_length += 1;
        if self.trailers_length > TRAILERS_LENGTH_MAX {
            return Err(Fault::TrailersTooLong);
        }
        match (self.state, byte) {
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => Ok(State::TrailerName),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLineFeed),
            (State::TrailerValue, _) if is_text(byte) => Ok(State::TrailerValue),
            (State::TrailerLineFeed, b'\n') => Ok(State::TrailerStart),
            _ => Err(Fault::Trailer),
        }
    }
}

fn extension(length: u32) -> Result<State, Fault> {
    if length < EXTENSION_LENGTH_MAX {
        Ok(State::Extension { length: length + 1 })
    } else {
        Err(Fault::ExtensionTooLong)
    }
}

/// What may stand in an extension or in the value of a field: visible, space, tab, or beyond ASCII.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// RFC 9110, section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The line before a chunk's payload, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    bytes: [u8; ChunkHead::LENGTH_MAX],
    start: u8,
}

impl ChunkHead {
    /// The longest line: sixteen digits, CR and LF.
    pub const LENGTH_MAX: usize = 18;

    /// The line before a payload of `payload_length` bytes. Behind the payload comes [`CHUNK_END`].
    ///
    /// # Panics
    /// If the payload is empty: an empty chunk would end the body, which only [`BODY_END`] does.
    pub fn new(payload_length: u64) -> ChunkHead {
        assert!(payload_length > 0, "an empty chunk is the end of a body");
        let mut bytes = [0; ChunkHead::LENGTH_MAX];
        bytes[ChunkHead::LENGTH_MAX - 2..].copy_from_slice(b"\r\n");
        let mut start = ChunkHead::LENGTH_MAX - 2;
        let mut rest = payload_length;
        while rest > 0 {
            start -= 1;
            bytes[start] = b"0123456789abcdef"[(rest % 16) as usize];
            rest /= 16;
        }
        ChunkHead { bytes, start: start as u8 }
    }

    /// The line.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What came of a body given in pieces: its payload and the bytes behind its end, or the status.
    type Outcome = Result<(Vec<u8>, Option<Vec<u8>>), u16>;

    /// Decodes pieces one after the other. `elsewhere` receives payload past the decoder wherever it can.
    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, elsewhere: bool) -> Outcome {
        let mut decoder = Decoder::new();
        let (mut payload, mut behind) = (Vec::new(), None::<Vec<u8>>);
        for piece in pieces {
            let mut rest = piece;
            if let Some(behind) = &mut behind {
                behind.extend_from_slice(rest);
                continue;
            }
            loop {
                if elsewhere && decoder.payload_remaining() > 0 {
                    let length = rest.len().min(decoder.payload_remaining() as usize);
                    payload.extend_from_slice(&rest[..length]);
                    decoder.consume_payload(length as u64);
                    rest = &rest[length..];
                }
                match decoder.advance(rest).map_err(|problem| {
                    assert!(problem.close);
                    problem.status.as_u16()
                })? {
                    Step::NeedMore => break,
                    Step::Data { skip, available } => {
                        assert!(available > 0);
                        payload.extend_from_slice(&rest[skip..skip + available]);
                        rest = &rest[skip + available..];
                    }
                    Step::End { consumed } => {
                        assert!(decoder.is_ended());
                        behind = Some(rest[consumed..].to_vec());
                        break;
                    }
                }
            }
        }
        Ok((payload, behind))
    }

    /// Decodes a body whole, byte by byte, and split in two at every point: all must agree.
    fn decode_every_way(body: &[u8]) -> Outcome {
        let whole = decode([body], false);
        assert_eq!(decode([body], true), whole, "received elsewhere");
        for elsewhere in [false, true] {
            assert_eq!(decode(body.chunks(1), elsewhere), whole, "byte by byte");
            for split in 0..=body.len().min(300) {
                let (first, second) = body.split_at(split);
                assert_eq!(decode([first, second], elsewhere), whole, "split at {split}");
            }
        }
        whole
    }

    #[test]
    fn good_bodies() {
        for (body, payload, behind) in [
            ("0\r\n\r\n", "", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("5\r\nhello\r\n6\r\n, ther\r\n1\r\ne\r\n0\r\n\r\nGET /", "hello, there", "GET /"),
            ("0005\r\nhello\r\n000\r\n\r\n", "hello", ""),
            ("9\r\n\r\n0\r\n\r\n5\r\r\n0\r\n\r\n", "\r\n0\r\n\r\n5\r", ""),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""),
            ("5;name=value\r\nhello\r\n0;last\r\n\r\n", "hello", ""),
            ("5 ; a = \"b;c\"\t\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("5;\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("0\r\nETag: \"x\"\r\nContent-Length: 7\r\nEmpty:\r\n\r\n\r\n", "", "\r\n"),
            ("0000000000000001\r\nx\r\n0\r\n\r\n", "x", ""),
        ] {
            let expected = (payload.as_bytes().to_vec(), Some(behind.as_bytes().to_vec()));
            assert_eq!(decode_every_way(body.as_bytes()), Ok(expected), "{body:?}");
        }
    }

    #[test]
    fn a_body_that_stops_short_never_ends() {
        let body = b"5;x\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n";
        for length in 0..body.len() {
            let (_, behind) = decode([&body[..length]], false).unwrap();
            assert_eq!(behind, None, "{length} bytes of {}", body.len());
        }
    }

    #[test]
    fn bad_bodies() {
        for body in [
            "\r\n",
            ";x\r\n",
            " 5\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x5\r\n",
            "5h\r\n",
            "5,\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\rhello",
            "5\r\r\n",
            "5 \r\nhello",
            "5 5\r\nhello",
            "5 \n",
            "5;a\nhello",
            "5;a\rb\r\n",
            "5;a\0b\r\n",
            "5;\x7f\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n",
            "5\r\nhello\rX",
            "5\r\nhello\r\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\r\n\r\n",
            "ffffffffffffffff\r\n",
            "4000000000000001\r\n",
            "10000000000000000\r\n",
            "00000000000000001\r\n",
            "fffffffffffffffff\r\n",
            "0\r\n\n",
            "0\r\nX\r\n",
            "0\r\n: x\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\r\n",
            "0\r\nA: b\rXC: d\r\n\r\n",
            "0\r\nA: b\0\r\n",
            "0\r\nA: b\r\n \r\n",
            "0\r\nA: b\r\n\rX",
            "0\n\n",
            "é\r\n",
        ] {
            assert_eq!(decode_every_way(body.as_bytes()), Err(400), "{body:?}");
        }
    }

    #[test]
    fn an_error_stays() {
        let mut decoder = Decoder::new();
        let problem = decoder.advance(b"x").unwrap_err();
        assert_eq!(decoder.advance(b"5\r\nhello"), Err(problem.clone()));
        assert_eq!(decoder.advance(b""), Err(problem));
        assert_eq!((decoder.payload_remaining(), decoder.is_ended()), (0, false));
    }

    #[test]
    fn limits_are_inclusive() {
        let extended = |length: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(length - 1));
        assert!(decode([extended(4096).as_bytes()], false).is_ok());
        assert_eq!(decode([extended(4097).as_bytes()], false), Err(400));
        let spaced = |length: usize| format!("1{};\r\nx\r\n0\r\n\r\n", " ".repeat(length - 1));
        assert!(decode([spaced(4096).as_bytes()], false).is_ok());
        assert_eq!(decode([spaced(4097).as_bytes()], false), Err(400));
        assert_eq!(decode([spaced(9000).as_bytes()], false), Err(400));
        let trailer = |length: usize| format!("0\r\nT:{}\r\n\r\n", "v".repeat(length - 4));
        assert!(decode([trailer(8192).as_bytes()], false).is_ok());
        assert_eq!(decode([trailer(8193).as_bytes()], false), Err(431));
        let mut decoder = Decoder::new();
        assert_eq!(decoder.advance(b"4000000000000000\r\n"), Ok(Step::NeedMore));
        assert_eq!(decoder.payload_remaining(), CHUNK_LENGTH_MAX);
    }

    #[test]
    fn after_the_end_nothing_is_taken() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.advance(b"0\r\n\r\n"), Ok(Step::End { consumed: 5 }));
        assert_eq!(decoder.advance(b""), Ok(Step::End { consumed: 0 }));
        assert_eq!(decoder.advance(b"5\r\n"), Ok(Step::End { consumed: 0 }));
    }

    #[test]
    fn chunk_heads() {
        for length in [1, 9, 10, 15, 16, 255, 256, 65_536, 1 << 62, u64::MAX] {
            assert_eq!(ChunkHead::new(length).as_bytes(), format!("{length:x}\r\n").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back_however_it_is_split(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            lengths in proptest::collection::vec(1usize..30, 1..60),
            elsewhere in any::<bool>(),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(ChunkHead::new(chunk.len() as u64).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(CHUNK_END);
            }
            body.extend_from_slice(BODY_END);
            body.extend_from_slice(b"next");
            let mut pieces = Vec::new();
            let mut rest = body.as_slice();
            for length in lengths {
                let (piece, behind) = rest.split_at(length.min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            pieces.push(rest);
            prop_assert_eq!(decode(pieces, elsewhere), Ok((chunks.concat(), Some(b"next".to_vec()))));
        }

        #[test]
        fn no_body_panics_and_splits_never_matter(
            parts in proptest::collection::vec(
                proptest::sample::select(vec!["\r\n", "\r", "\n", "0", "1", "5", "a", ";", " ", "hello", ":", "\0"]),
                0..24,
            ),
        ) {
            decode_every_way(parts.concat().as_bytes()).ok();
        }
    }
}
