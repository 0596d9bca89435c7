//! Where the body of an answer ends. No I/O: the decoder is fed what was received, in pieces of any size, and says
//! which of it is body.

use std::ops::Range;

/// The most bytes that the extensions of one chunk, or all trailer fields together, may have.
const EXTRA_BYTES_MAX: usize = 16 * 1024;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// With the chunk of length zero.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// What the decoder made of its input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// This part of the input is body; all up to its end is used up.
    Data(Range<usize>),
    /// The whole input is used up, and the body is not yet whole.
    More,
    /// The body is whole; this much of the input belonged to it.
    Finished(usize),
}

/// Finds the end of one body.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of a body of known length are to come.
    Length(u64),
    UntilClose,
    /// In the hexadecimal size of a chunk, of which there were so many digits.
    Size {
        size: u64,
        digits: u32,
    },
    /// Behind the size, up to the line's end.
    Extension {
        size: u64,
        length: usize,
    },
    /// The line's end is half there.
    SizeLineFeed {
        size: u64,
    },
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    ChunkReturn,
    ChunkLineFeed,
    /// At the start of a line of the trailer section.
    TrailerStart {
        length: usize,
    },
    Trailer {
        length: usize,
    },
    TrailerLineFeed {
        length: usize,
    },
    LastLineFeed,
    Finished,
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Decoder { state }
    }

    /// Takes what was received after what was used up before.
    ///
    /// # Errors
    /// What is wrong with the framing. The decoder must not be used again then.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<Progress, String> {
        let mut used = 0;
        loop {
            match self.state {
                State::Finished | State::Length(0) => return Ok(Progress::Finished(used)),
                State::Length(left) => {
                    let taken = take(left, &input[used..]);
                    if taken == 0 {
                        return Ok(Progress::More);
                    }
                    self.state = State::Length(left - taken as u64);
                    return Ok(Progress::Data(used..used + taken));
                }
                State::UntilClose if used < input.len() => return Ok(Progress::Data(used..input.len())),
                State::UntilClose => return Ok(Progress::More),
                State::Chunk(0) => self.state = State::ChunkReturn,
                State::Chunk(left) => {
                    let taken = take(left, &input[used..]);
                    if taken == 0 {
                        return Ok(Progress::More);
                    }
                    self.state = State::Chunk(left - taken as u64);
                    return Ok(Progress::Data(used..used + taken));
                }
                framing => {
                    let Some(&byte) = input.get(used) else { return Ok(Progress::More) };
                    self.state = step(framing, byte)?;
                    used += 1;
                }
            }
        }
    }

    /// Says that the peer sent its last byte.
    ///
    /// # Errors
    /// What is missing, if the body is not whole.
    pub(super) fn end(&self) -> Result<(), String> {
        match self.state {
            State::UntilClose | State::Finished | State::Length(0) => Ok(()),
            State::Length(left) => Err(format!("{left} bytes of the body are missing")),
            _ => Err("the last chunk is missing".to_owned()),
        }
    }
}

/// How much of `input` belongs to what is left.
fn take(left: u64, input: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(input.len())
}

/// One byte of the lines around the chunks.
fn step(state: State, byte: u8) -> Result<State, String> {
    match (state, byte) {
        (State::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            if digits == 16 {
                return Err("the size of a chunk has more than 16 digits".to_owned());
            }
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
        }
        (State::Size { digits: 0, .. }, _) => Err("a chunk has no size".to_owned()),
        (State::Size { size, .. }, b'\r') => Ok(State::SizeLineFeed { size }),
        (State::Size { size, .. }, b';') => Ok(State::Extension { size, length: 0 }),
        (State::Size { .. }, _) => Err("the size of a chunk is not hexadecimal".to_owned()),
        (State::Extension { size, .. }, b'\r') => Ok(State::SizeLineFeed { size }),
        (State::Extension { .. }, b'\n') => Err("a chunk's line ends without a return".to_owned()),
        (State::Extension { length, .. }, _) if length == EXTRA_BYTES_MAX => {
            Err(format!("a chunk's extension is longer than {EXTRA_BYTES_MAX} bytes"))
        }
        (State::Extension { size, length }, _) => Ok(State::Extension { size, length: length + 1 }),
        (State::SizeLineFeed { size: 0 }, b'\n') => Ok(State::TrailerStart { length: 0 }),
        (State::SizeLineFeed { size }, b'\n') => Ok(State::Chunk(size)),
        (State::ChunkReturn, b'\r') => Ok(State::ChunkLineFeed),
        (State::ChunkLineFeed, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
        (State::ChunkReturn | State::ChunkLineFeed, _) => Err("a chunk is longer than its size".to_owned()),
        (State::TrailerStart { .. }, b'\r') => Ok(State::LastLineFeed),
        (State::Trailer { length }, b'\r') => Ok(State::TrailerLineFeed { length }),
        (State::TrailerStart { .. } | State::Trailer { .. }, b'\n') => {
            Err("a trailer field ends without a return".to_owned())
        }
        (State::TrailerStart { length } | State::Trailer { length }, _) if length == EXTRA_BYTES_MAX => {
            Err(format!("the trailer section is longer than {EXTRA_BYTES_MAX} bytes"))
        }
        (State::TrailerStart { length } | State::Trailer { length }, _) => {
            Ok(State::Trailer { length: length + 1 })
        }
        (State::TrailerLineFeed { length }, b'\n') => Ok(State::TrailerStart { length }),
        (State::LastLineFeed, b'\n') => Ok(State::Finished),
        (State::SizeLineFeed { .. } | State::TrailerLineFeed { .. } | State::LastLineFeed, _) => {
            Err("a return stands alone".to_owned())
        }
        (State::Length(_) | State::UntilClose | State::Chunk(_) | State::Finished, _) => {
            unreachable!("{state:?} takes runs of bytes, not single ones")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in the parts that `cuts` make of it: the body, and whether it was whole.
    fn decode(framing: Framing, parts: &[&[u8]]) -> Result<(Vec<u8>, bool), String> {
        let mut decoder = Decoder::new(framing);
        let mut body = Vec::new();
        for part in parts {
            let mut rest = *part;
            loop {
                match decoder.decode(rest)? {
                    Progress::Data(range) => {
                        body.extend_from_slice(&rest[range.clone()]);
                        rest = &rest[range.end..];
                    }
                    Progress::More => break,
                    Progress::Finished(used) => {
                        assert_eq!(used, rest.len(), "bytes behind the body were taken");
                        return Ok((body, true));
                    }
                }
            }
        }
        let whole = decoder.end().is_ok();
        Ok((body, whole))
    }

    const CHUNKED: &[u8] =
        b"5\r\nhello\r\n1;name=\"value\"\r\n,\r\n000A\r\n 0123\r\n678\r\n0\r\nExpires: never\r\nX: y\r\n\r\n";
    const CHUNKED_BODY: &[u8] = b"hello, 0123\r\n678";

    #[test]
    fn chunks_split_at_every_byte_and_byte_by_byte() {
        for cut in 0..=CHUNKED.len() {
            let (first, second) = CHUNKED.split_at(cut);
            let (body, whole) = decode(Framing::Chunked, &[first, second]).unwrap();
            assert_eq!((body.as_slice(), whole), (CHUNKED_BODY, true), "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = CHUNKED.chunks(1).collect();
        assert_eq!(decode(Framing::Chunked, &bytes).unwrap(), (CHUNKED_BODY.to_vec(), true));
    }

    #[test]
    fn a_chunked_body_cut_anywhere_is_not_whole() {
        for cut in 0..CHUNKED.len() {
            let (body, whole) = decode(Framing::Chunked, &[&CHUNKED[..cut]]).unwrap();
            assert!(!whole, "cut at {cut}");
            assert!(CHUNKED_BODY.starts_with(&body));
        }
    }

    #[test]
    fn a_body_of_known_length_is_whole_with_its_last_byte() {
        assert_eq!(decode(Framing::Length(0), &[]).unwrap(), (vec![], true));
        assert_eq!(decode(Framing::Length(5), &[b"he", b"llo"]).unwrap(), (b"hello".to_vec(), true));
        assert_eq!(decode(Framing::Length(5), &[b"he", b"ll"]).unwrap(), (b"hell".to_vec(), false));
        assert_eq!(decode(Framing::UntilClose, &[b"he", b"llo"]).unwrap(), (b"hello".to_vec(), true));
    }

    #[test]
    fn what_follows_the_body_is_left_alone() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let input = b"1\r\nx\r\n0\r\n\r\nHTTP/1.1";
        assert_eq!(decoder.decode(input).unwrap(), Progress::Data(3..4));
        assert_eq!(decoder.decode(&input[4..]).unwrap(), Progress::Finished(7));
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        for input in [
            b"\r\n".as_slice(),
            b"g\r\n",
            b" 1\r\nx\r\n",
            b"1 \r\nx\r\n",
            b"-1\r\n",
            b"0x1\r\nx\r\n",
            b"1\nx\r\n",
            b"1\rx",
            b"1\r\nxy\r\n",
            b"1\r\nx\ny",
            b"1;a\nx",
            b"11111111111111111\r\n",
            b"0\r\n\rx",
            b"0\r\nA: b\n",
            b"0\r\nA: b\rx",
        ] {
            assert!(decode(Framing::Chunked, &[input]).is_err(), "{:?}", String::from_utf8_lossy(input));
        }
        let extension = [b"1;".as_slice(), &[b'x'; EXTRA_BYTES_MAX + 1]].concat();
        assert!(decode(Framing::Chunked, &[&extension]).is_err());
        let trailers = [b"0\r\n".as_slice(), &b"a: b\r\n".repeat(EXTRA_BYTES_MAX)].concat();
        assert!(decode(Framing::Chunked, &[&trailers]).is_err());
    }
}
