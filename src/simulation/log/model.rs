//! What a workload on the log expects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Tally;
use crate::log::Segment;

/// What is expected. Records are numbered in the order in which they are appended.
#[derive(Default)]
pub(super) struct Model {
    pub lengths: BTreeMap<u64, usize>,
    /// Acknowledged, or found once.
    pub firm: BTreeSet<u64>,
    /// Appended since the last recovery and not acknowledged, in order.
    pub pending: Vec<u64>,
    /// Lost, as was told: the next recovery finds it or not.
    pub given_up: BTreeSet<u64>,
    /// Not found by a recovery: must never come back.
    pub cut_off: BTreeSet<u64>,
    /// Nobody refers to records below this number: they may be found, or not.
    pub forgotten_below: u64,
    pub kept: BTreeMap<u64, Place>,
    pub next_number: u64,
    /// The session has ended and does not know it.
    pub is_dead: bool,
    pub violation: Option<String>,
    pub tally: Tally,
}

#[derive(Clone)]
pub(super) struct Place {
    pub segment: Arc<Segment>,
    pub position: u64,
}

impl Model {
    /// Takes in a record that was appended, and gives it its number.
    pub fn append(&mut self, length: usize) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.lengths.insert(number, length);
        self.pending.push(number);
        self.tally.appended += 1;
        number
    }

    /// Takes in that a record is lost.
    pub fn give_up(&mut self, number: u64) {
        if !self.is_dead {
            self.pending.retain(|other| *other != number);
            self.given_up.insert(number);
        }
    }

    /// Lets records go. What is returned refers to their segments.
    pub fn forget(&mut self, below: u64) -> Vec<Place> {
        self.forgotten_below = self.forgotten_below.max(below);
        let kept = self.kept.split_off(&self.forgotten_below);
        std::mem::replace(&mut self.kept, kept).into_values().collect()
    }

    /// Compares what a recovery has found with what is expected, and goes on from there.
    pub fn compare(&mut self, found: &[(u64, usize)]) -> Result<(), String> {
        if !found.is_sorted_by(|first, second| first.0 < second.0) {
            return Err(format!("found out of order: {found:?}"));
        }
        for &(number, length) in found {
            match self.lengths.get(&number) {
                None => return Err(format!("found {number}, which nobody has appended")),
                Some(&expected) if expected != length => {
                    return Err(format!("found {length} bytes of {number}, which has {expected}"));
                }
                Some(_) if self.cut_off.contains(&number) => {
                    return Err(format!("{number} was cut off by an earlier start, and has come back"));
                }
                Some(_) => {}
            }
        }
        let found: BTreeSet<u64> = found.iter().map(|&(number, _)| number).collect();
        if let Some(lost) = self.firm.range(self.forgotten_below..).find(|number| !found.contains(number)) {
            return Err(format!("{lost} was acknowledged, and is lost"));
        }
        let pending = std::mem::take(&mut self.pending);
        let missing =
            pending.iter().position(|number| !found.contains(number) && *number >= self.forgotten_below);
        let (beginning, rest) = pending.split_at(missing.unwrap_or(pending.len()));
        if let Some(number) = rest.iter().find(|number| found.contains(number)) {
            return Err(format!("{number} is found, and {} before it is not", rest[0]));
        }
        self.firm.extend(beginning.iter().filter(|number| found.contains(number)));
        self.cut_off.extend(rest);
        for number in std::mem::take(&mut self.given_up) {
            let taken = if found.contains(&number) { &mut self.firm } else { &mut self.cut_off };
            taken.insert(number);
        }
        Ok(())
    }
}

/// The byte at a place of a record: each record has other ones.
pub(super) fn byte_of(number: u64, at: usize) -> u8 {
    (number as usize).wrapping_mul(31).wrapping_add(at.wrapping_mul(7)).wrapping_add(at >> 8) as u8
}

pub(super) fn is_content_of(number: u64, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(at, &byte)| byte == byte_of(number, at))
}
