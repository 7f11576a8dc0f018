//! The fingerprints of a split, whichever kind was asked for.

use super::Dedup;
use super::minhash::{Permutations, Signature, distance_of};
use super::near;
use super::simhash;

/// How texts become fingerprints.
pub(super) enum Maker {
    Simhash,
    Minhash(Permutations),
}

/// Of one text; `None` for one without words, which is compared with nothing.
#[derive(Debug)]
pub(super) enum Print {
    None,
    Simhash(u64),
    Minhash(Signature),
}

impl Maker {
    pub fn new(dedup: Dedup) -> Self {
        match dedup {
            Dedup::Simhash { .. } => Maker::Simhash,
            Dedup::Minhash { .. } => Maker::Minhash(Permutations::new()),
        }
    }

    pub fn print(&self, text: &str) -> Print {
        match self {
            Maker::Simhash => match simhash::fingerprint(text) {
                0 => Print::None,
                print => Print::Simhash(print),
            },
            Maker::Minhash(permutations) => {
                permutations.signature(text).map_or(Print::None, Print::Minhash)
            }
        }
    }
}

/// Of all texts of a split; only one of the two is filled.
#[derive(Default)]
pub(super) struct Prints {
    simhash: Vec<u64>,
    minhash: Vec<Signature>,
}

impl Prints {
    pub fn push(&mut self, print: Print) {
        match print {
            Print::None => {}
            Print::Simhash(print) => self.simhash.push(print),
            Print::Minhash(print) => self.minhash.push(print),
        }
    }

    pub fn finish(self) -> Distinct {
        Distinct {
            simhash: near::Distinct::new(self.simhash),
            minhash: near::Distinct::new(self.minhash),
        }
    }
}

/// Each once.
pub(super) struct Distinct {
    simhash: near::Distinct<u64>,
    minhash: near::Distinct<Signature>,
}

impl Distinct {
    pub fn len(&self) -> u64 {
        self.simhash.len() + self.minhash.len()
    }

    pub fn n_rows(&self) -> u64 {
        self.simhash.n_rows() + self.minhash.n_rows()
    }

    /// Pairs of near-duplicates; false if there may be more.
    pub fn pairs(&self, dedup: Dedup) -> (u64, bool) {
        match dedup {
            Dedup::Simhash { distance } => near::pairs(&self.simhash, distance),
            Dedup::Minhash { similarity } => near::pairs(&self.minhash, distance_of(similarity)),
        }
    }

    /// Rows of each of two splits that are in the other too; false if there may be more.
    pub fn leaks(&self, other: &Distinct, dedup: Dedup) -> ([u64; 2], bool) {
        match dedup {
            Dedup::Simhash { distance } => near::leaks(&self.simhash, &other.simhash, distance),
            Dedup::Minhash { similarity } => {
                near::leaks(&self.minhash, &other.minhash, distance_of(similarity))
            }
        }
    }
}
