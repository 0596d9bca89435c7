//! What is damaged in a store, and which objects that touches.

use std::fmt;
use std::ops::Range;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is and where, in a sentence without a final stop.
    pub what: String,
    /// The objects that lose something by it.
    pub touched: Vec<Touched>,
}

/// An object, and what of it is damaged or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// `bucket/key`, where that is known.
    pub name: Option<String>,
    /// Which generation of the name.
    pub generation: u64,
    /// Which part of it.
    pub part: Part,
}

/// A part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// These of its bytes.
    Bytes(Range<u64>),
    /// Its creation in the log: its name and metadata, which the catalog has too.
    Creation,
    /// Its seal in the log: that it is complete, which the catalog has too.
    Seal,
    /// Its deletion in the log.
    Deletion,
    /// What the catalog says of it.
    Catalog,
}

impl Finding {
    /// Something that touches no object.
    pub fn new(what: impl Into<String>) -> Finding {
        Finding { what: what.into(), touched: Vec::new() }
    }

    /// Something that touches one object.
    pub fn of(what: impl Into<String>, touched: Touched) -> Finding {
        Finding { what: what.into(), touched: vec![touched] }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.what)?;
        self.touched.iter().try_for_each(|touched| write!(formatter, "\n    {touched}"))
    }
}

impl fmt::Display for Touched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(formatter, "{name} (generation {}): ", self.generation)?,
            None => write!(formatter, "an object without a name (generation {}): ", self.generation)?,
        }
        match &self.part {
            Part::Bytes(range) => {
                write!(formatter, "bytes {} to {}", range.start, range.end.saturating_sub(1))
            }
            Part::Creation => formatter.write_str("its creation"),
            Part::Seal => formatter.write_str("its seal"),
            Part::Deletion => formatter.write_str("its deletion"),
            Part::Catalog => formatter.write_str("its row in the catalog"),
        }
    }
}
