//! Which of the blocks that were found count. Pure: what was read goes in, a verdict comes out.

use std::collections::{BTreeMap, HashMap};

use crate::log::format::{ALIGNMENT, BlockHeader, SEGMENT_HEADER_LENGTH};

/// Where a log goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// The sequence of the next block.
    pub next_sequence: u64,
    /// The next term.
    pub term: u32,
}

/// A block, and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its header.
    pub header: BlockHeader,
    /// Whether every payload in it is what was written.
    pub is_whole: bool,
    /// Behind it is what is left of another block of the same use of the file.
    pub damage_follows: bool,
    /// What the header of that one says, where it is whole.
    pub follower: Option<BlockHeader>,
    /// Which of the segments that were read it is in.
    pub segment: usize,
    /// Which of that one's blocks it is.
    pub place: usize,
}

impl Found {
    /// How many other blocks can have stood before it in its segment. What does not count never stands before what
    /// does.
    fn before_in_segment(&self) -> u64 {
        self.header.position.saturating_sub(SEGMENT_HEADER_LENGTH as u64) / ALIGNMENT as u64
    }

    /// Whether one of them can have been durable.
    fn follows_durable(&self, durable: u64) -> bool {
        let sequence = self.header.sequence;
        sequence.saturating_sub(self.before_in_segment()) < durable.min(sequence)
    }
}

/// Which blocks count.
#[derive(Default)]
pub struct Resolution {
    /// The blocks that count, by log, then by sequence.
    pub counting: Vec<Found>,
    /// Where each log goes on.
    pub logs: BTreeMap<u16, Continuation>,
    /// What is lost.
    pub gaps: Vec<Gap>,
    /// The blocks that no later term voids.
    pub stands: Vec<Found>,
    /// Blocks of logs of which nothing is known, with payloads that are not what was written, of which no other block
    /// says that they were durable: torn writes, or they have lost what was deleted.
    pub doubtful: Vec<Found>,
}

/// Blocks that were durable and are missing before one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    log: u16,
    /// None: how many there were is not known.
    first_sequence: Option<u64>,
    end_sequence: u64,
    segment: usize,
    position: u64,
    /// The segment at the end of which something is damaged, if it is another one.
    pub behind: Option<usize>,
}

impl Gap {
    /// A sentence for whoever runs the store. `number_of` says which segment is at a place.
    pub fn describe(&self, number_of: impl Fn(usize) -> u64) -> String {
        let which = match self.first_sequence {
            Some(first) => format!("blocks {first} to {}", self.end_sequence - 1),
            None => format!("blocks up to {}", self.end_sequence - 1),
        };
        if let Some(behind) = self.behind {
            return format!(
                "{which} of log {} are lost: the end of segment {} is damaged",
                self.log,
                number_of(behind)
            );
        }
        format!(
            "{which} of log {} are lost: they stood before position {} of segment {}",
            self.log,
            self.position,
            number_of(self.segment)
        )
    }
}

/// Settles which blocks count, by the rules in the header of the log's room. What is `known` of a log is not gone
/// through again: the first block that is not, and the term of the last one that is.
pub fn resolve(found: &mut [Found], known: &HashMap<u16, (u64, u32)>) -> Resolution {
    found
        .sort_by_key(|found| (found.header.log, found.header.sequence, std::cmp::Reverse(found.header.term)));
    let mut resolution = Resolution::default();
    for (&log, &(next_sequence, term)) in known {
        resolution.logs.insert(log, Continuation { next_sequence, term: term + 1 });
    }
    for log in found.chunk_by(|first, second| first.header.log == second.header.log) {
        let number = log[0].header.log;
        let known = known.get(&number).copied();
        let terms: BTreeMap<u32, u64> =
            log.iter().map(|found| (found.header.term, found.header.term_start)).collect();
        let is_begun_anew =
            |header: &BlockHeader| terms.range(header.term + 1..).any(|(_, &start)| start <= header.sequence);
        let is_void = |header: &BlockHeader| {
            let is_known = known.is_some_and(|(next, term)| header.sequence < next || header.term < term);
            header.log == number && (is_begun_anew(header) || is_known)
        };
        resolution.stands.extend(log.iter().filter(|found| !is_begun_anew(&found.header)));
        let valid: Vec<Found> = log.iter().copied().filter(|found| !is_void(&found.header)).collect();
        // What some block says was durable before it.
        let durable =
            valid.iter().map(|found| found.header.durable.max(found.header.term_start)).max().unwrap_or(0);
        if known.is_none() {
            let is_doubtful = |found: &&Found| !found.is_whole && found.header.sequence >= durable;
            resolution.doubtful.extend(valid.iter().filter(is_doubtful));
        }
        // Also one that is torn says what can have stood before it.
        let first_of = |found: &Found| {
            let of_segment = log.iter().filter(|other| other.segment == found.segment);
            of_segment.min_by_key(|other| other.header.position).copied().unwrap_or(*found)
        };
        let mut expected: Option<(u64, Option<usize>)> = known.map(|(next, _)| (next, None));
        let mut damage_follows = false;
        let mut next_sequence = durable.max(known.map_or(0, |(next, _)| next));
        for found in valid {
            let sequence = found.header.sequence;
            // A payload that is not whole is a torn write, unless it was durable once.
            if !found.is_whole && sequence >= durable {
                continue;
            }
            if let Some((wanted, former_segment)) = expected {
                if sequence < wanted {
                    continue; // the same block of an earlier term
                }
                if sequence > wanted {
                    if wanted >= durable {
                        break; // the log ends here: what follows was never acknowledged
                    }
                    // Where no books are kept, segments in between were used again; nothing in them was alive.
                    let behind = former_segment.filter(|&former| damage_follows && former != found.segment);
                    let is_in_segment =
                        former_segment == Some(found.segment) || first_of(&found).follows_durable(durable);
                    if known.is_some() || is_in_segment || behind.is_some() {
                        resolution.gaps.push(Gap {
                            log: number,
                            first_sequence: Some(wanted),
                            end_sequence: sequence.min(durable),
                            segment: found.segment,
                            position: found.header.position,
                            behind,
                        });
                    }
                    // If the gap reaches beyond what was durable, its end was torn.
                    if sequence > durable {
                        break;
                    }
                }
            } else if sequence > durable {
                break; // the block before it is torn
            } else if found.follows_durable(durable) {
                resolution.gaps.push(Gap {
                    log: number,
                    first_sequence: None,
                    end_sequence: sequence,
                    segment: found.segment,
                    position: found.header.position,
                    behind: None,
                });
            }
            expected = Some((sequence + 1, Some(found.segment)));
            // What was written again elsewhere, or given up, is missed by nobody.
            damage_follows = found.damage_follows && !found.follower.is_some_and(|header| is_void(&header));
            next_sequence = next_sequence.max(sequence + 1);
            resolution.counting.push(found);
        }
        let term =
            terms.last_key_value().map_or(0, |(&term, _)| term).max(known.map_or(0, |known| known.1)) + 1;
        resolution.logs.insert(number, Continuation { next_sequence, term });
    }
    resolution
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as (segment, sequence, durable, term, term start), in log 0.
    fn found(blocks: &[(usize, u64, u64, u32, u64)]) -> Vec<Found> {
        let first_of = |segment| blocks.iter().find(|block| block.0 == segment).map_or(0, |block| block.1);
        blocks
            .iter()
            .enumerate()
            .map(|(place, &(segment, sequence, durable, term, term_start))| Found {
                header: BlockHeader {
                    store: 1,
                    epoch: segment as u64,
                    sequence,
                    durable,
                    term_start,
                    term,
                    length: 100,
                    records: 1,
                    log: 0,
                    position: 4096 * (1 + sequence - first_of(segment)),
                },
                is_whole: true,
                damage_follows: false,
                follower: None,
                segment,
                place,
            })
            .collect()
    }

    fn counting(blocks: &[(usize, u64, u64, u32, u64)]) -> (Vec<(usize, u64)>, Continuation, usize) {
        let resolution = resolve(&mut found(blocks), &HashMap::new());
        let counting =
            resolution.counting.iter().map(|found| (found.segment, found.header.sequence)).collect();
        (counting, resolution.logs.get(&0).copied().unwrap_or_default(), resolution.gaps.len())
    }

    #[test]
    fn a_whole_log_counts_whole() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (1, 2, 1, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 1), (1, 2)]);
        assert_eq!(continuation, Continuation { next_sequence: 3, term: 2 });
        assert_eq!(gaps, 0);
    }

    #[test]
    fn the_log_ends_before_a_torn_block() {
        // Block 1 is torn; 2 and 3 were written behind it and never acknowledged.
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 1, 1, 0), (1, 3, 1, 1, 0)]);
        assert_eq!(blocks, [(0, 0)]);
        assert_eq!((continuation.next_sequence, gaps), (1, 0));
    }

    #[test]
    fn the_first_block_torn_means_an_empty_log() {
        let (blocks, continuation, _) = counting(&[(0, 1, 0, 1, 0), (0, 2, 0, 1, 0)]);
        assert!(blocks.is_empty());
        assert_eq!(continuation, Continuation { next_sequence: 0, term: 2 });
    }

    #[test]
    fn what_was_durable_and_is_gone_is_damage_and_the_log_goes_on() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 2, 1, 0), (0, 3, 3, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 2), (0, 3)]);
        assert_eq!((continuation.next_sequence, gaps), (4, 1));
    }

    #[test]
    fn damage_and_a_torn_tail_are_told_apart() {
        // 1 was durable (2 says so); 3 is torn, 4 was never acknowledged.
        let (blocks, _, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 2, 1, 0), (0, 4, 3, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 2)]);
        assert_eq!(gaps, 1);
    }

    #[test]
    fn a_segment_that_was_used_again_is_no_damage() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (2, 5, 5, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (2, 5)]);
        assert_eq!((continuation.next_sequence, gaps), (6, 0));
    }

    #[test]
    fn blocks_are_missed_where_the_end_of_a_segment_is_damaged() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (2, 5, 5, 1, 0)]);
        assert!(resolve(&mut blocks.clone(), &HashMap::new()).gaps.is_empty());
        blocks[1].damage_follows = true;
        let gaps = resolve(&mut blocks, &HashMap::new()).gaps;
        assert_eq!((gaps.len(), gaps[0].first_sequence, gaps[0].end_sequence), (1, Some(2), 5));
        assert_eq!(gaps[0].behind, Some(0));
    }

    /// A block that failed was written again to another segment, which was used again since: what it had left behind
    /// was taken for damage.
    #[test]
    fn what_is_left_of_a_block_that_was_written_again_is_no_damage() {
        for (term, gaps) in [(1, 1), (2, 0)] {
            let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (2, 5, 5, term, 2)]);
            blocks[1].damage_follows = true;
            blocks[1].follower = Some(BlockHeader { sequence: 2, ..blocks[1].header });
            assert_eq!(resolve(&mut blocks, &HashMap::new()).gaps.len(), gaps, "term {term}");
        }
    }

    #[test]
    fn what_stood_before_the_first_block_of_a_segment_is_damage() {
        for first in [None, Some((0, 0, 0, 1, 0))] {
            let mut blocks: Vec<_> = first.into_iter().collect();
            blocks.extend([(2, 5, 5, 1, 0), (2, 6, 6, 1, 0)]);
            let mut found = found(&blocks);
            assert!(resolve(&mut found, &HashMap::new()).gaps.is_empty());
            for found in &mut found {
                found.header.position += if found.header.sequence == 0 { 0 } else { 4096 };
            }
            let resolution = resolve(&mut found, &HashMap::new());
            assert_eq!((resolution.counting.len(), resolution.gaps.len()), (blocks.len(), 1));
            assert_eq!(resolution.gaps[0].end_sequence, 5);
        }
    }

    /// Segment 1 was used again, of 2 the first block was torn, and what was lost was said to have stood there.
    #[test]
    fn what_was_durable_did_not_stand_where_only_a_torn_block_can_have_stood() {
        for (before, is_there, gaps) in [(1, false, 0), (2, false, 1), (2, true, 0), (60, true, 0)] {
            let torn = is_there.then_some((2, 4, 3, 1, 0));
            let blocks = [(0, 0, 0, 1, 0), (0, 1, 1, 1, 0)].into_iter().chain(torn).chain([(2, 5, 4, 1, 0)]);
            let mut blocks = found(&blocks.collect::<Vec<_>>());
            blocks.iter_mut().for_each(|found| found.is_whole = found.header.sequence != 4);
            blocks.last_mut().unwrap().header.position = 4096 * (1 + before);
            let resolution = resolve(&mut blocks, &HashMap::new());
            assert_eq!((resolution.counting.len(), resolution.gaps.len()), (2, gaps), "{before} before it");
        }
    }

    #[test]
    fn what_a_start_has_cut_off_stays_cut_off() {
        // The first run left 0 and, behind a torn 1, the void 2. The second run began with 1 and has acknowledged.
        let (blocks, continuation, gaps) =
            counting(&[(0, 0, 0, 1, 0), (0, 2, 1, 1, 0), (1, 1, 1, 2, 1), (1, 2, 2, 2, 1), (1, 3, 3, 2, 1)]);
        assert_eq!(blocks, [(0, 0), (1, 1), (1, 2), (1, 3)]);
        assert_eq!((continuation, gaps), (Continuation { next_sequence: 4, term: 3 }, 0));
    }

    #[test]
    fn what_was_written_again_after_a_failure_counts_once() {
        let (blocks, _, gaps) =
            counting(&[(0, 0, 0, 1, 0), (0, 1, 0, 1, 0), (0, 2, 0, 1, 0), (1, 1, 1, 2, 1), (1, 2, 1, 2, 1)]);
        assert_eq!(blocks, [(0, 0), (1, 1), (1, 2)]);
        assert_eq!(gaps, 0);
    }

    #[test]
    fn what_is_known_is_not_gone_through_again_and_a_gap_behind_it_is_damage() {
        let known = HashMap::from([(0, (2, 1))]);
        // 2 and 3 are lost with their segment; 4 says that they were durable. 1 is a leftover.
        let mut blocks = found(&[(0, 1, 1, 1, 0), (1, 4, 4, 1, 0), (1, 5, 4, 1, 0)]);
        let resolution = resolve(&mut blocks, &known);
        let counting: Vec<u64> = resolution.counting.iter().map(|found| found.header.sequence).collect();
        assert_eq!(counting, [4, 5]);
        assert_eq!((resolution.gaps[0].first_sequence, resolution.gaps[0].end_sequence), (Some(2), 4));
        assert_eq!(resolution.logs[&0], Continuation { next_sequence: 6, term: 2 });
    }

    #[test]
    fn what_an_earlier_term_has_left_behind_what_is_known_is_void() {
        let known = HashMap::from([(0, (2, 3))]);
        let resolution = resolve(&mut found(&[(0, 2, 2, 2, 0), (0, 3, 2, 2, 0)]), &known);
        assert!(resolution.counting.is_empty());
        assert_eq!(resolution.logs[&0], Continuation { next_sequence: 2, term: 4 });
    }

    #[test]
    fn a_log_of_which_nothing_is_found_goes_on_behind_what_is_known() {
        let resolution = resolve(&mut [], &HashMap::from([(3, (7, 5))]));
        assert_eq!(resolution.logs[&3], Continuation { next_sequence: 7, term: 6 });
    }

    #[test]
    fn a_payload_that_is_gone_ends_the_log_only_where_it_was_not_durable() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (0, 2, 2, 1, 0), (0, 3, 2, 1, 0)]);
        blocks[1].is_whole = false;
        blocks[2].is_whole = false;
        let resolution = resolve(&mut blocks, &HashMap::new());
        let counting: Vec<u64> = resolution.counting.iter().map(|found| found.header.sequence).collect();
        assert_eq!(counting, [0, 1], "1 was durable and is damaged, 2 was torn, 3 never acknowledged");
        assert!(resolution.gaps.is_empty());
    }

    #[test]
    fn logs_do_not_mix() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (1, 0, 0, 1, 0), (1, 1, 0, 1, 0)]);
        blocks[1].header.log = 1;
        blocks[2].header.log = 1;
        let resolution = resolve(&mut blocks, &HashMap::new());
        assert_eq!(resolution.counting.len(), 3);
        assert_eq!(resolution.logs[&0].next_sequence, 1);
        assert_eq!(resolution.logs[&1].next_sequence, 2);
    }
}
