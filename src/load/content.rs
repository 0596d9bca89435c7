//! Content that proves itself: every byte follows from a seed, the number of the object and the offset, so that
//! whoever reads it can tell a byte that is wrong, missing, doubled or out of another object, wherever they begin.
//!
//! The content of a stream consists of pieces of one size. A piece opens with a header of [`HEADER_BYTES`] bytes,
//! five little-endian numbers of 64 bits: a magic number, the number of the stream, the piece's number in it, the
//! time at which it was to be sent (nanoseconds since the start of the run), and a checksum of these four. So a
//! reader that joins in the middle finds where it is, and everyone knows how long each piece was on its way.

use std::ops::Range;

/// The length of a piece's header, in bytes; a piece is longer.
pub const HEADER_BYTES: usize = 40;

const MAGIC: u64 = u64::from_le_bytes(*b"twPIECE\n");
/// How much is generated at a time to be compared, in bytes.
const COMPARED_BYTES: usize = 4096;

/// The content of one object.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    key: u64,
}

impl Content {
    /// The content of the object with this number, in a run with this seed.
    pub fn new(seed: u64, object: u64) -> Content {
        Content { key: mix(seed ^ mix(object)) }
    }

    /// Writes what stands at `offset` into `output`.
    pub fn fill(&self, offset: u64, output: &mut [u8]) {
        let within = (offset % 8) as usize;
        let (first, rest) = output.split_at_mut(((8 - within) % 8).min(output.len()));
        first.copy_from_slice(&self.word(offset / 8)[within..][..first.len()]);
        for (index, word) in (offset.div_ceil(8)..).zip(rest.chunks_mut(8)) {
            word.copy_from_slice(&self.word(index)[..word.len()]);
        }
    }

    /// Compares `bytes` with what stands at `offset`: the offset of the first byte that differs, if one does.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = [0; COMPARED_BYTES];
        let mut position = offset;
        for part in bytes.chunks(COMPARED_BYTES) {
            let expected = &mut expected[..part.len()];
            self.fill(position, expected);
            if part != expected {
                let same = part.iter().zip(expected).take_while(|(left, right)| left == right).count();
                return Some(position + same as u64);
            }
            position += part.len() as u64;
        }
        None
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
    }
}

/// The finalizer of SplitMix64: every bit of the input changes half of the output's.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The pieces of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    content: Content,
    stream: u64,
    piece_bytes: usize,
}

impl Pieces {
    /// The pieces of the stream with this number.
    ///
    /// # Panics
    /// If a piece had no room for more than its header.
    pub fn new(seed: u64, stream: u64, piece_bytes: usize) -> Pieces {
        assert!(piece_bytes > HEADER_BYTES, "a piece is longer than its header");
        Pieces { content: Content::new(seed, stream), stream, piece_bytes }
    }

    /// Makes the piece with this number in `output`, in place of what was there.
    pub fn make(&self, sequence: u64, sent_nanoseconds: u64, output: &mut Vec<u8>) {
        output.resize(self.piece_bytes, 0);
        let (header, payload) = output.split_at_mut(HEADER_BYTES);
        let fields = [MAGIC, self.stream, sequence, sent_nanoseconds];
        for (place, field) in header.chunks_exact_mut(8).zip(fields.iter().chain([&checksum(fields)])) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        self.content.fill(sequence * self.piece_bytes as u64 + HEADER_BYTES as u64, payload);
    }

    /// Reads a header: the piece's number and when it was to be sent, if it is a header of this stream.
    fn read_header(&self, header: &[u8; HEADER_BYTES]) -> Option<(u64, u64)> {
        let mut fields = [0; HEADER_BYTES / 8];
        for (field, bytes) in fields.iter_mut().zip(header.chunks_exact(8)) {
            *field = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [magic, stream, sequence, sent_nanoseconds, sum] = fields;
        let sound = magic == MAGIC
            && stream == self.stream
            && sum == checksum([magic, stream, sequence, sent_nanoseconds]);
        sound.then_some((sequence, sent_nanoseconds))
    }

    fn payload_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        self.content.first_difference(offset, bytes)
    }
}

fn checksum(fields: [u64; 4]) -> u64 {
    fields.into_iter().fold(0, |sum, field| mix(sum ^ field))
}

/// A piece that was received, whole and verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number in the stream.
    pub sequence: u64,
    /// When it was to be sent: nanoseconds since the start of the run.
    pub sent_nanoseconds: u64,
}

/// Verifies a stream as it is received, in parts of any size.
///
/// Every byte is compared, but for those of a header of which only the end was received: the first one of a reader
/// that joined there.
#[derive(Debug)]
pub struct Verifier {
    pieces: Pieces,
    /// Where the first byte stood; unknown until a header is found by one who joined in the middle.
    start: Option<u64>,
    /// How many bytes were verified.
    verified: u64,
    header: [u8; HEADER_BYTES],
    sent_nanoseconds: u64,
    /// What was received before a header was found.
    lost: Vec<u8>,
}

impl Verifier {
    /// Verifies from the start of the stream.
    pub fn from_start(pieces: Pieces) -> Verifier {
        Verifier {
            pieces,
            start: Some(0),
            verified: 0,
            header: [0; HEADER_BYTES],
            sent_nanoseconds: 0,
            lost: Vec::new(),
        }
    }

    /// Verifies from wherever the first byte stands.
    pub fn from_anywhere(pieces: Pieces) -> Verifier {
        Verifier { start: None, ..Verifier::from_start(pieces) }
    }

    /// Where in the stream the first byte stood, once it is known.
    pub fn start(&self) -> Option<u64> {
        self.start
    }

    /// How many bytes were verified.
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// The offset behind the last byte that was verified; 0 until the start is known.
    pub fn position(&self) -> u64 {
        self.start.map_or(0, |start| start + self.verified)
    }

    /// Takes the next bytes, and tells of each piece that they complete.
    ///
    /// # Errors
    /// What is wrong, and at which offset. It cannot be used any longer then.
    pub fn feed(&mut self, bytes: &[u8], mut on_piece: impl FnMut(Received)) -> Result<(), String> {
        if self.start.is_some() {
            return self.verify(bytes, &mut on_piece);
        }
        self.lost.extend_from_slice(bytes);
        match self.find_start() {
            Some(start) => {
                self.start = Some(start);
                let bytes = std::mem::take(&mut self.lost);
                self.verify(&bytes, &mut on_piece)
            }
            None if self.lost.len() >= self.pieces.piece_bytes + HEADER_BYTES => Err(format!(
                "there is no header in {} bytes of pieces of {}",
                self.lost.len(),
                self.pieces.piece_bytes
            )),
            None => Ok(()),
        }
    }

    fn find_start(&self) -> Option<u64> {
        let mut windows = self.lost.windows(HEADER_BYTES).enumerate();
        windows.find_map(|(place, window)| {
            let (sequence, _) = self.pieces.read_header(window.try_into().ok()?)?;
            (sequence * self.pieces.piece_bytes as u64).checked_sub(place as u64)
        })
    }

    fn verify(&mut self, mut bytes: &[u8], on_piece: &mut impl FnMut(Received)) -> Result<(), String> {
        let piece_bytes = self.pieces.piece_bytes as u64;
        while !bytes.is_empty() {
            let start = self.start.unwrap_or_default();
            let offset = start + self.verified;
            let (sequence, place) = (offset / piece_bytes, (offset % piece_bytes) as usize);
            let seen_whole = sequence * piece_bytes >= start;
            let range =
                if place < HEADER_BYTES { place..HEADER_BYTES } else { place..self.pieces.piece_bytes };
            let (part, rest) = bytes.split_at(range.len().min(bytes.len()));
            let reached = place + part.len();
            if place < HEADER_BYTES {
                self.header[place..reached].copy_from_slice(part);
                if reached == HEADER_BYTES && seen_whole {
                    self.check_header(sequence, offset..offset + part.len() as u64)?;
                }
            } else if let Some(wrong) = self.pieces.payload_difference(offset, part) {
                return Err(format!("the byte at offset {wrong} is wrong"));
            }
            self.verified += part.len() as u64;
            if reached == self.pieces.piece_bytes && seen_whole {
                on_piece(Received { sequence, sent_nanoseconds: self.sent_nanoseconds });
            }
            bytes = rest;
        }
        Ok(())
    }

    fn check_header(&mut self, sequence: u64, range: Range<u64>) -> Result<(), String> {
        match self.pieces.read_header(&self.header) {
            Some((found, sent_nanoseconds)) if found == sequence => {
                self.sent_nanoseconds = sent_nanoseconds;
                Ok(())
            }
            Some((found, _)) => {
                Err(format!("piece {found} stands where piece {sequence} should, at offset {}", range.start))
            }
            None => Err(format!("the header of piece {sequence}, up to offset {}, is damaged", range.end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_BYTES: usize = 101;

    fn stream(pieces: u64) -> Vec<u8> {
        let (mut whole, mut piece) = (Vec::new(), Vec::new());
        for sequence in 0..pieces {
            Pieces::new(1, 2, PIECE_BYTES).make(sequence, sequence * 1_000, &mut piece);
            whole.extend_from_slice(&piece);
        }
        whole
    }

    #[test]
    fn any_part_of_the_content_is_the_same_as_in_the_whole() {
        let content = Content::new(7, 9);
        let mut whole = vec![0; 100];
        content.fill(1_000, &mut whole);
        for start in 0..20 {
            for end in start..100 {
                let mut part = vec![0; end - start];
                content.fill(1_000 + start as u64, &mut part);
                assert_eq!(part, whole[start..end], "{start}..{end}");
            }
        }
        let mut other = vec![0; 100];
        Content::new(7, 10).fill(1_000, &mut other);
        assert_ne!(other, whole);
    }

    #[test]
    fn the_first_byte_that_differs_is_named() {
        let content = Content::new(7, 9);
        let mut bytes = vec![0; 3 * COMPARED_BYTES];
        content.fill(5, &mut bytes);
        assert_eq!(content.first_difference(5, &bytes), None);
        for place in [0, 1, COMPARED_BYTES - 1, COMPARED_BYTES, 3 * COMPARED_BYTES - 1] {
            bytes[place] ^= 1;
            assert_eq!(content.first_difference(5, &bytes), Some(5 + place as u64));
            bytes[place] ^= 1;
        }
    }

    #[test]
    fn a_stream_is_verified_in_parts_of_any_size() {
        let whole = stream(5);
        for size in 1..=whole.len() {
            let mut verifier = Verifier::from_start(Pieces::new(1, 2, PIECE_BYTES));
            let mut received = Vec::new();
            for part in whole.chunks(size) {
                verifier.feed(part, |piece| received.push(piece)).unwrap();
            }
            assert_eq!(verifier.position(), whole.len() as u64);
            let expected: Vec<_> =
                (0..5).map(|sequence| Received { sequence, sent_nanoseconds: sequence * 1_000 }).collect();
            assert_eq!(received, expected, "in parts of {size}");
        }
    }

    #[test]
    fn whoever_joins_anywhere_finds_the_place() {
        let whole = stream(5);
        for start in 0..3 * PIECE_BYTES {
            let mut verifier = Verifier::from_anywhere(Pieces::new(1, 2, PIECE_BYTES));
            let mut count = 0;
            for part in whole[start..].chunks(13) {
                verifier.feed(part, |_| count += 1).unwrap();
            }
            assert_eq!(verifier.start(), Some(start as u64));
            assert_eq!(verifier.position(), whole.len() as u64);
            assert_eq!(count, 5 - start.div_ceil(PIECE_BYTES), "from {start}");
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let whole = stream(3);
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            let mut verifier = Verifier::from_start(Pieces::new(1, 2, PIECE_BYTES));
            assert!(verifier.feed(&damaged, |_| ()).is_err(), "byte {place}");
        }
    }

    #[test]
    fn bytes_that_are_missing_doubled_or_of_another_stream_are_found() {
        let whole = stream(4);
        let piece = &whole[PIECE_BYTES..2 * PIECE_BYTES];
        for wrong in [
            [&whole[..PIECE_BYTES], &whole[2 * PIECE_BYTES..]].concat(),
            [&whole[..2 * PIECE_BYTES], piece].concat(),
            [&whole[..50], &whole[51..]].concat(),
        ] {
            let mut verifier = Verifier::from_start(Pieces::new(1, 2, PIECE_BYTES));
            assert!(verifier.feed(&wrong, |_| ()).is_err());
        }
        for other in [Pieces::new(1, 3, PIECE_BYTES), Pieces::new(2, 2, PIECE_BYTES)] {
            assert!(Verifier::from_start(other).feed(&whole, |_| ()).is_err());
            let joined = Verifier::from_anywhere(other).feed(&whole[10..], |_| ());
            assert!(joined.is_err());
        }
    }
}
