//! The bytes of blocks, records and segment headers: see the tables in [`super`]. Pure, without I/O.

use crate::error::{Error, Kind, Result};

/// What every block is aligned to, in position and in length, in bytes.
pub const ALIGNMENT: usize = 4096;
/// The version of the format. A store of another version is refused.
pub const VERSION: u32 = 2;
/// The length of a segment's header, in bytes: one aligned unit, of which the first 64 bytes are used.
pub const SEGMENT_HEADER_LENGTH: usize = ALIGNMENT;
/// The length of a block's header, in bytes.
pub const BLOCK_HEADER_LENGTH: usize = 72;
/// The longest block that is believed in, in bytes: what a piece of an arena can have.
pub const BLOCK_LENGTH_MAX: usize = 16 << 20;
/// The length of a record's header, in bytes.
pub const RECORD_HEADER_LENGTH: usize = 40;
/// What every record is aligned to within its block, in bytes.
pub const RECORD_ALIGNMENT: usize = 8;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"tailwtr\x01");
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"twb\x01");

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store that the segment belongs to.
    pub store: u64,
    /// The number of the segment: its file's name.
    pub number: u64,
    /// Which use of the file this is, unique in the store: blocks of an earlier use carry another.
    pub epoch: u64,
    /// The length of the file in bytes.
    pub length: u64,
}

/// The header of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The store that the block belongs to: what looks like a block in somebody's payload has another.
    pub store: u64,
    /// The epoch of its segment.
    pub epoch: u64,
    /// The number of the block in its log.
    pub sequence: u64,
    /// Every block of this log with a smaller sequence was durable when this one was closed.
    pub durable: u64,
    /// The sequence that the block's term began with: it voids blocks of earlier terms from there on.
    pub term_start: u64,
    /// Counts the times that the log was begun anew: starts of the store, and failed segments.
    pub term: u32,
    /// The length in bytes with this header and without the padding behind.
    pub length: u32,
    /// How many records are in it.
    pub records: u32,
    /// The log: the number of the core that writes it.
    pub log: u16,
    /// Where in the segment it stands, in bytes.
    pub position: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A new generation of a name; the payload is its metadata.
    Create = 1,
    /// Bytes of an object.
    Append = 2,
    /// A frame of an object: bytes with a timestamp of the caller's.
    Frame = 3,
    /// The object is complete; the offset is its length.
    Seal = 4,
    /// The writer is gone; the offset is what is kept.
    Interrupt = 5,
    /// The generation is deleted.
    Delete = 6,
    /// The object is going to be as long as the offset says, which was not known when it began.
    Declare = 7,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<RecordKind> {
        Some(match byte {
            1 => RecordKind::Create,
            2 => RecordKind::Append,
            3 => RecordKind::Frame,
            4 => RecordKind::Seal,
            5 => RecordKind::Interrupt,
            6 => RecordKind::Delete,
            7 => RecordKind::Declare,
            _ => return None,
        })
    }

    /// Whether the payload is bytes of the object.
    pub fn is_data(self) -> bool {
        matches!(self, RecordKind::Append | RecordKind::Frame)
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it says.
    pub kind: RecordKind,
    /// The append goes on in the object's next record: it counts only together with that.
    pub continued: bool,
    /// The length of the payload in bytes.
    pub length: u32,
    /// Which object.
    pub generation: u64,
    /// The object's offset of the first payload byte; its length for a seal.
    pub offset: u64,
    /// Microseconds since 1970; a frame's own, otherwise when it was appended.
    pub timestamp: u64,
}

const CONTINUED: u8 = 1;

/// CRC32C (Castagnoli, as in RFC 3720 appendix B.4).
fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn take_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn take_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

impl SegmentHeader {
    /// Writes the header to the beginning of `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        bytes[..64].fill(0);
        put(bytes, 0, SEGMENT_MAGIC.to_le_bytes());
        put(bytes, 12, VERSION.to_le_bytes());
        put(bytes, 16, self.store.to_le_bytes());
        put(bytes, 24, self.number.to_le_bytes());
        put(bytes, 32, self.epoch.to_le_bytes());
        put(bytes, 40, self.length.to_le_bytes());
        let sum = checksum(&bytes[12..64]);
        put(bytes, 8, sum.to_le_bytes());
    }

    /// Reads a header. None: there is none, or a torn one: the segment holds nothing.
    ///
    /// # Errors
    /// [`Kind::Damaged`] for a whole header of another version of the format.
    pub fn decode(bytes: &[u8]) -> Result<Option<SegmentHeader>> {
        if bytes.len() < 64
            || take_u64(bytes, 0) != SEGMENT_MAGIC
            || take_u32(bytes, 8) != checksum(&bytes[12..64])
        {
            return Ok(None);
        }
        let version = take_u32(bytes, 12);
        if version != VERSION {
            let message = format!(
                "the segment is of format version {version}, and this program reads version {VERSION}"
            );
            return Err(Error::new(Kind::Damaged, message));
        }
        Ok(Some(SegmentHeader {
            store: take_u64(bytes, 16),
            number: take_u64(bytes, 24),
            epoch: take_u64(bytes, 32),
            length: take_u64(bytes, 40),
        }))
    }
}

impl SegmentHeader {
    /// Whether these bytes are this header, or were but for one field of it.
    pub fn is_all_but_one_field_of(&self, bytes: &[u8]) -> bool {
        const FIELDS: [(usize, usize); 8] =
            [(0, 8), (8, 12), (12, 16), (16, 24), (24, 32), (32, 40), (40, 48), (48, 64)];
        let mut expected = [0; 64];
        self.encode(&mut expected);
        let differs = |&&(start, end): &&(usize, usize)| bytes[start..end] != expected[start..end];
        bytes.len() >= 64 && FIELDS.iter().filter(differs).count() <= 1
    }

    /// The epoch that stands in these bytes, whether or not they are whole.
    pub fn epoch_in(bytes: &[u8]) -> Option<u64> {
        (bytes.len() >= 64).then(|| take_u64(bytes, 32))
    }
}

impl BlockHeader {
    /// Whether these bytes, which are no whole header, were the header of the block at this position in this use of a
    /// segment: most of what tells one from anything else is still there.
    pub fn was_in(bytes: &[u8], store: u64, epoch: u64, position: u64) -> bool {
        let is_there = [
            take_u32(bytes, 0) == BLOCK_MAGIC,
            take_u64(bytes, 8) == epoch,
            take_u64(bytes, 56) == position,
            take_u64(bytes, 64) == store,
        ];
        is_there.into_iter().filter(|is_there| *is_there).count() >= 3
    }

    /// Whether the block is of this use of a file, stands where it says, and fits in before `end`.
    pub fn belongs(&self, store: u64, epoch: u64, position: u64, end: u64) -> bool {
        self.store == store
            && self.epoch == epoch
            && self.position == position
            && (BLOCK_HEADER_LENGTH..=BLOCK_LENGTH_MAX).contains(&(self.length as usize))
            && position + u64::from(self.length) <= end
    }

    /// Writes the header to the beginning of `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        bytes[..BLOCK_HEADER_LENGTH].fill(0);
        put(bytes, 0, BLOCK_MAGIC.to_le_bytes());
        put(bytes, 8, self.epoch.to_le_bytes());
        put(bytes, 16, self.sequence.to_le_bytes());
        put(bytes, 24, self.durable.to_le_bytes());
        put(bytes, 32, self.term_start.to_le_bytes());
        put(bytes, 40, self.term.to_le_bytes());
        put(bytes, 44, self.length.to_le_bytes());
        put(bytes, 48, self.records.to_le_bytes());
        put(bytes, 52, self.log.to_le_bytes());
        put(bytes, 56, self.position.to_le_bytes());
        put(bytes, 64, self.store.to_le_bytes());
        let sum = checksum(&bytes[8..BLOCK_HEADER_LENGTH]);
        put(bytes, 4, sum.to_le_bytes());
    }

    /// Reads a header. None: there is none here, or it is torn.
    pub fn decode(bytes: &[u8]) -> Option<BlockHeader> {
        if bytes.len() < BLOCK_HEADER_LENGTH
            || take_u32(bytes, 0) != BLOCK_MAGIC
            || take_u32(bytes, 4) != checksum(&bytes[8..BLOCK_HEADER_LENGTH])
        {
            return None;
        }
        Some(BlockHeader {
            epoch: take_u64(bytes, 8),
            sequence: take_u64(bytes, 16),
            durable: take_u64(bytes, 24),
            term_start: take_u64(bytes, 32),
            term: take_u32(bytes, 40),
            length: take_u32(bytes, 44),
            records: take_u32(bytes, 48),
            log: u16::from_le_bytes(take(bytes, 52)),
            position: take_u64(bytes, 56),
            store: take_u64(bytes, 64),
        })
    }
}

/// How many bytes a record with this payload takes in a block.
pub fn record_length(payload_length: usize) -> usize {
    (RECORD_HEADER_LENGTH + payload_length).next_multiple_of(RECORD_ALIGNMENT)
}

impl RecordHeader {
    /// Writes the header before a payload that is already in place: `bytes` is the whole record without the
    /// padding behind it. Header and payload have a checksum each, so that the records of a block can be told when
    /// the payload of one is gone.
    ///
    /// # Panics
    /// If `bytes` is not as long as header and payload.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), RECORD_HEADER_LENGTH + self.length as usize);
        put(bytes, 4, self.length.to_le_bytes());
        put(bytes, 8, self.generation.to_le_bytes());
        put(bytes, 16, self.offset.to_le_bytes());
        put(bytes, 24, self.timestamp.to_le_bytes());
        put(bytes, 32, [self.kind as u8, if self.continued { CONTINUED } else { 0 }, 0, 0]);
        let sum = checksum(&bytes[RECORD_HEADER_LENGTH..]);
        put(bytes, 36, sum.to_le_bytes());
        let sum = checksum(&bytes[4..RECORD_HEADER_LENGTH]);
        put(bytes, 0, sum.to_le_bytes());
    }

    /// Reads and checks the header of the record at the beginning of `bytes`. None: there is none here, or it is
    /// damaged. The payload is not looked at; its checksum comes with the header.
    pub fn decode(bytes: &[u8]) -> Option<(RecordHeader, PayloadChecksum)> {
        let bytes = bytes.get(..RECORD_HEADER_LENGTH)?;
        if take_u32(bytes, 0) != checksum(&bytes[4..]) {
            return None;
        }
        let [kind, flags, ..] = take::<8>(bytes, 32);
        let header = RecordHeader {
            kind: RecordKind::from_byte(kind)?,
            continued: flags & CONTINUED != 0,
            length: take_u32(bytes, 4),
            generation: take_u64(bytes, 8),
            offset: take_u64(bytes, 16),
            timestamp: take_u64(bytes, 24),
        };
        Some((header, PayloadChecksum(take_u32(bytes, 36))))
    }
}

/// What the payload of a record is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadChecksum(u32);

impl PayloadChecksum {
    /// Whether this is the payload, whole and unchanged.
    pub fn is_of(self, payload: &[u8]) -> bool {
        self.0 == checksum(payload)
    }
}

/// A record in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its header.
    pub header: RecordHeader,
    /// Where its payload begins, in bytes from the beginning of the block.
    pub payload_start: usize,
    /// Whether the payload is what was written. That of a deleted object may be punched out.
    pub is_whole: bool,
}

impl Record {
    /// The payload within its block.
    pub fn payload<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.payload_start..self.payload_start + self.header.length as usize]
    }
}

/// The records of a block. None when a header is damaged or the lengths do not agree: then it is no block.
pub fn records_of(header: &BlockHeader, block: &[u8]) -> Option<Vec<Record>> {
    let length = header.length as usize;
    if length < BLOCK_HEADER_LENGTH || length > block.len() {
        return None;
    }
    let mut records = Vec::new();
    let mut at = BLOCK_HEADER_LENGTH;
    for _ in 0..header.records {
        let (record, checksum) = RecordHeader::decode(block.get(at..length)?)?;
        let payload_start = at + RECORD_HEADER_LENGTH;
        let payload = block.get(payload_start..payload_start.checked_add(record.length as usize)?)?;
        records.push(Record { header: record, payload_start, is_whole: checksum.is_of(payload) });
        at += record_length(record.length as usize);
    }
    (at == length).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Vec<u8> {
        let mut bytes = vec![0xEE; ALIGNMENT];
        let mut at = BLOCK_HEADER_LENGTH;
        for (number, payload) in [&b"hello"[..], b"", b"12345678"].into_iter().enumerate() {
            let header = RecordHeader {
                kind: RecordKind::Append,
                continued: number == 0,
                length: payload.len() as u32,
                generation: 7,
                offset: 5 * number as u64,
                timestamp: 99,
            };
            let end = at + RECORD_HEADER_LENGTH + payload.len();
            bytes[at + RECORD_HEADER_LENGTH..end].copy_from_slice(payload);
            header.encode(&mut bytes[at..end]);
            at += record_length(payload.len());
        }
        let header = BlockHeader {
            store: 5,
            epoch: 3,
            sequence: 11,
            durable: 9,
            term_start: 8,
            term: 2,
            length: at as u32,
            records: 3,
            log: 1,
            position: 4096,
        };
        header.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_block_comes_back() {
        let bytes = block();
        let header = BlockHeader::decode(&bytes).unwrap();
        assert_eq!((header.epoch, header.sequence, header.durable, header.term_start), (3, 11, 9, 8));
        assert_eq!((header.term, header.records, header.log, header.position), (2, 3, 1, 4096));
        let records = records_of(&header, &bytes).unwrap();
        assert_eq!(records.len(), 3);
        assert!(records[0].header.continued && !records[1].header.continued);
        assert!(records.iter().all(|record| record.is_whole));
        let last = records[2];
        assert_eq!(last.payload(&bytes), b"12345678");
        assert_eq!((last.header.generation, last.header.offset, last.header.timestamp), (7, 10, 99));
    }

    #[test]
    fn every_flipped_bit_within_the_length_is_noticed() {
        let bytes = block();
        let header = BlockHeader::decode(&bytes).unwrap();
        let mut unnoticed = 0;
        for bit in 0..header.length as usize * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let records = BlockHeader::decode(&damaged).and_then(|header| records_of(&header, &damaged));
            let is_whole = records.is_some_and(|records| records.iter().all(|record| record.is_whole));
            unnoticed += usize::from(is_whole);
        }
        // The bytes between records (3 behind "hello") carry nothing.
        assert_eq!(unnoticed, 3 * 8);
    }

    #[test]
    fn a_payload_that_is_gone_leaves_the_other_records() {
        let mut bytes = block();
        let header = BlockHeader::decode(&bytes).unwrap();
        let last = records_of(&header, &bytes).unwrap()[2];
        bytes[last.payload_start..last.payload_start + 8].fill(0);
        let whole: Vec<bool> =
            records_of(&header, &bytes).unwrap().iter().map(|record| record.is_whole).collect();
        assert_eq!(whole, [true, true, false]);
    }

    #[test]
    fn lengths_are_bounded_before_they_are_trusted() {
        let mut bytes = block();
        let mut header = BlockHeader::decode(&bytes).unwrap();
        for length in [0, 71, 72, header.length - 1, header.length + 1, u32::MAX] {
            header.length = length;
            assert!(records_of(&header, &bytes).is_none(), "{length}");
        }
        put(&mut bytes, BLOCK_HEADER_LENGTH + 4, u32::MAX.to_le_bytes());
        assert!(RecordHeader::decode(&bytes[BLOCK_HEADER_LENGTH..]).is_none());
    }

    #[test]
    fn a_segment_header_comes_back_and_a_foreign_version_is_refused() {
        let header = SegmentHeader { store: 1, number: 2, epoch: 3, length: 4 << 20 };
        let mut bytes = vec![0xEE; SEGMENT_HEADER_LENGTH];
        header.encode(&mut bytes);
        assert_eq!(SegmentHeader::decode(&bytes).unwrap(), Some(header));
        for bit in 0..64 * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged).unwrap(), None);
        }
        put(&mut bytes, 12, (VERSION + 1).to_le_bytes());
        let sum = checksum(&bytes[12..64]);
        put(&mut bytes, 8, sum.to_le_bytes());
        assert!(SegmentHeader::decode(&bytes).is_err());
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes.
        assert_eq!(checksum(&[0; 32]), 0x8A91_36AA);
    }
}
