//! The sequences of a run by number, wherever they lie.

use std::path::PathBuf;
use std::sync::Arc;

use crate::render::Sequence;
use crate::store::{StoreError, TokenStore};

/// Sequences in memory, or in token files of which only an index is in memory.
///
/// They come in units: what is trained together, which is one sequence, or a preference's two answers. A unit
/// is a record.
#[derive(Debug, Clone, Default)]
pub struct Sequences {
    per_unit: usize,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Memory(Vec<Sequence>),
    /// Records of the stores end to end, and which of them are the units.
    Stored {
        stores: Vec<Stored>,
        units: Vec<u32>,
    },
}

impl Default for Place {
    fn default() -> Self {
        Place::Memory(Vec::new())
    }
}

/// A token file and its first record's number.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub first: u32,
    pub store: Arc<TokenStore>,
    /// The files that its sequences came from.
    pub files: Vec<PathBuf>,
}

impl From<Vec<Sequence>> for Sequences {
    /// Each sequence is a unit.
    fn from(sequences: Vec<Sequence>) -> Self {
        Sequences { per_unit: 1, place: Place::Memory(sequences) }
    }
}

impl Sequences {
    /// Every two sequences are a unit: a preference's two answers, the chosen one first.
    ///
    /// # Panics
    /// If their number is odd.
    #[must_use]
    pub fn pairs(sequences: Vec<Sequence>) -> Self {
        assert!(sequences.len().is_multiple_of(2), "an answer without its other");
        Sequences { per_unit: 2, place: Place::Memory(sequences) }
    }

    pub(crate) fn stored(per_unit: usize, stores: Vec<Stored>, units: Vec<u32>) -> Self {
        Sequences { per_unit, place: Place::Stored { stores, units } }
    }

    /// Number of units.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Memory(sequences) => sequences.len() / self.per_unit.max(1),
            Place::Stored { units, .. } => units.len(),
        }
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of a unit.
    ///
    /// # Panics
    /// If there is no such unit: a bug in the caller.
    #[must_use]
    pub fn n_tokens(&self, unit: usize) -> usize {
        self.sum(unit, |sequence| sequence.tokens.len(), TokenStore::n_tokens)
    }

    /// Trained tokens of a unit.
    ///
    /// # Panics
    /// If there is no such unit: a bug in the caller.
    #[must_use]
    pub fn n_trained(&self, unit: usize) -> usize {
        self.sum(unit, Sequence::n_trained, TokenStore::n_trained)
    }

    /// True if every sequence of a unit has a trained token.
    pub(crate) fn is_each_trained(&self, unit: usize) -> bool {
        match &self.place {
            Place::Memory(sequences) => {
                let from = unit * self.per_unit;
                sequences[from..from + self.per_unit].iter().all(|s| s.n_trained() > 0)
            }
            Place::Stored { stores, units } => {
                let (stored, local) = find(stores, units[unit]);
                let from = local * self.per_unit;
                (from..from + self.per_unit).all(|i| stored.store.n_trained(i) > 0)
            }
        }
    }

    /// Tokens of every unit.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|unit| self.n_tokens(unit)).collect()
    }

    fn sum(
        &self,
        unit: usize,
        of_sequence: fn(&Sequence) -> usize,
        of_store: fn(&TokenStore, usize) -> usize,
    ) -> usize {
        match &self.place {
            Place::Memory(sequences) => {
                let from = unit * self.per_unit;
                sequences[from..from + self.per_unit].iter().map(of_sequence).sum()
            }
            Place::Stored { stores, units } => {
                let (stored, local) = find(stores, units[unit]);
                let from = local * self.per_unit;
                (from..from + self.per_unit).map(|i| of_store(&stored.store, i)).sum()
            }
        }
    }

    /// The record that a unit is.
    ///
    /// # Panics
    /// If there is no such unit: a bug in the caller.
    #[must_use]
    pub fn record(&self, unit: usize) -> u64 {
        match &self.place {
            Place::Memory(sequences) => sequences[unit * self.per_unit].record,
            Place::Stored { units, .. } => u64::from(units[unit]),
        }
    }

    /// The sequences of some units, in order.
    ///
    /// # Errors
    /// If the token file cannot be read.
    ///
    /// # Panics
    /// If there is no such unit: a bug in the caller.
    pub fn read(&self, units: &[usize]) -> Result<Vec<Sequence>, StoreError> {
        let mut read = Vec::with_capacity(units.len() * self.per_unit);
        for &unit in units {
            match &self.place {
                Place::Memory(sequences) => {
                    let from = unit * self.per_unit;
                    read.extend_from_slice(&sequences[from..from + self.per_unit]);
                }
                Place::Stored { stores, units } => {
                    let record = units[unit];
                    let (stored, local) = find(stores, record);
                    for i in local * self.per_unit..(local + 1) * self.per_unit {
                        read.push(stored.store.read(i, u64::from(record))?.0);
                    }
                }
            }
        }
        Ok(read)
    }

    /// File and line of a record; `None` for sequences that came from no file.
    #[must_use]
    pub fn origin(&self, record: u64) -> Option<(PathBuf, u64)> {
        let Place::Stored { stores, .. } = &self.place else { return None };
        let (stored, local) = find(stores, u32::try_from(record).ok()?);
        let origin = stored.store.origin(local * self.per_unit).ok()?;
        Some((stored.files.get(origin.file as usize)?.clone(), origin.line))
    }
}

/// The store of a record, and its number there.
fn find(stores: &[Stored], record: u32) -> (&Stored, usize) {
    let at = stores.partition_point(|stored| stored.first <= record).saturating_sub(1);
    (&stores[at], (record - stores[at].first) as usize)
}
