//! The rows of a split, one after the other, as numbers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use forgelm_privacy::{PiiKind, SecretKind};

use super::look::Looked;
use super::prints::{Distinct, Prints};
use super::quality::QualityFlag;
use super::{AuditSettings, masked};

/// Lengths from which percentiles are taken.
const LENGTHS_KEPT: u64 = 100_000;
/// Names of columns, and sets of them, that are told apart.
const COLUMNS_MAX: usize = 4096;

/// Lengths of texts, in characters.
#[derive(Debug, Clone, PartialEq)]
pub struct TextLength {
    /// The shortest.
    pub min: u64,
    /// The longest.
    pub max: u64,
    /// On average.
    pub mean: f64,
    /// Half are shorter; from a sample of at most 100,000.
    pub p50: u64,
    /// All but a twentieth are shorter.
    pub p95: u64,
}

/// What is known of a split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SplitReport {
    /// Rows that are JSON.
    pub n_samples: u64,
    /// Columns, in the order in which they first appear; what looks like a secret in them is masked.
    pub columns: Vec<String>,
    /// Columns that rows do not usually have.
    pub drift_columns: Vec<String>,
    /// Rows that are no object.
    pub n_non_objects: u64,
    /// Lengths of the texts, if there is one.
    pub text_length: Option<TextLength>,
    /// Rows without a text.
    pub n_empty: u64,
    /// Different fingerprints.
    pub n_distinct: u64,
    /// Pairs of rows that are near-duplicates.
    pub near_duplicate_pairs: u64,
    /// False if counting them was given up.
    pub are_pairs_complete: bool,
    /// Personal data.
    pub pii: BTreeMap<PiiKind, u64>,
    /// Secrets.
    pub secrets: BTreeMap<SecretKind, u64>,
    /// Texts that were judged.
    pub n_evaluated: u64,
    /// Texts with a doubt.
    pub n_flagged: u64,
    /// By doubt.
    pub flags: BTreeMap<QualityFlag, u64>,
    /// Rows that are no JSON.
    pub parse_errors: u64,
    /// Rows with bytes that are no UTF-8.
    pub decode_errors: u64,
    /// The first file that could not be read to its end, and why.
    pub error: Option<(PathBuf, String)>,
}

/// A split while it is read.
#[derive(Default)]
pub(super) struct Reading {
    pub pii: BTreeMap<PiiKind, u64>,
    pub secrets: BTreeMap<SecretKind, u64>,
    pub error: Option<(PathBuf, String)>,
    report: SplitReport,
    prints: Prints,
    lengths: Lengths,
    /// Numbers of columns by name.
    columns: BTreeMap<String, usize>,
    /// How often each set of columns occurs, and when it first did.
    shapes: BTreeMap<Vec<usize>, (u64, usize)>,
}

impl Reading {
    /// Counts a row.
    pub fn take(&mut self, row: Looked) {
        for (kind, n) in row.pii {
            *self.pii.entry(kind).or_default() += n;
        }
        for (kind, n) in row.secrets {
            *self.secrets.entry(kind).or_default() += n;
        }
        self.report.decode_errors += u64::from(row.is_undecoded);
        let Some(sample) = row.sample else {
            self.report.parse_errors += 1;
            return;
        };
        self.report.n_samples += 1;
        match sample.columns {
            Some(columns) => self.take_columns(columns),
            None => self.report.n_non_objects += 1,
        }
        let Some(text) = sample.text else {
            self.report.n_empty += 1;
            return;
        };
        self.lengths.take(text.len);
        self.prints.push(text.print);
        self.report.n_evaluated += 1;
        self.report.n_flagged += u64::from(!text.flags.is_empty());
        for flag in text.flags {
            *self.report.flags.entry(flag).or_default() += 1;
        }
    }

    fn take_columns(&mut self, columns: Vec<String>) {
        let mut shape = Vec::with_capacity(columns.len());
        for name in columns {
            let n_known = self.columns.len();
            if n_known < COLUMNS_MAX || self.columns.contains_key(&name) {
                shape.push(*self.columns.entry(name).or_insert(n_known));
            }
        }
        shape.sort_unstable();
        let n_known = self.shapes.len();
        if n_known < COLUMNS_MAX || self.shapes.contains_key(&shape) {
            self.shapes.entry(shape).or_insert((0, n_known)).0 += 1;
        }
    }

    /// What is known after the last row, and the fingerprints.
    pub fn finish(self, settings: &AuditSettings) -> (SplitReport, Distinct) {
        let mut report = self.report;
        let mut columns: Vec<(usize, String)> =
            self.columns.into_iter().map(|(name, number)| (number, name)).collect();
        columns.sort_unstable();
        // Of sets that occur equally often, the first.
        let usual = self.shapes.into_iter().max_by_key(|(_, (n, nth))| (*n, usize::MAX - nth));
        let usual = usual.map(|(shape, _)| shape).unwrap_or_default();
        for (number, name) in columns {
            let name = masked(&name);
            if usual.binary_search(&number).is_err() {
                report.drift_columns.push(name.clone());
            }
            report.columns.push(name);
        }
        report.text_length = self.lengths.finish();
        let distinct = self.prints.finish();
        report.n_distinct = distinct.len();
        let (n_pairs, is_complete) = distinct.pairs(settings.dedup);
        (report.near_duplicate_pairs, report.are_pairs_complete) = (n_pairs, is_complete);
        if !settings.quality_filter {
            report.n_evaluated = 0;
        }
        (report.pii, report.secrets, report.error) = (self.pii, self.secrets, self.error);
        (report, distinct)
    }
}

/// Lengths: the extremes and the mean of all, and a sample of them.
pub(crate) struct Lengths {
    n: u64,
    sum: u64,
    min: u64,
    max: u64,
    sample: Vec<u64>,
    /// Of the generator that chooses the sample.
    state: u64,
}

impl Default for Lengths {
    fn default() -> Self {
        let state = MULTIPLIER;
        Lengths { n: 0, sum: 0, min: u64::MAX, max: 0, sample: Vec::new(), state }
    }
}

/// Knuth's, of MMIX.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

impl Lengths {
    pub fn take(&mut self, len: u64) {
        self.n += 1;
        self.sum += len;
        self.min = self.min.min(len);
        self.max = self.max.max(len);
        if self.n <= LENGTHS_KEPT {
            self.sample.push(len);
            return;
        }
        // Algorithm R (Vitter 1985): each length is in the sample with the same chance. The place comes
        // from the generator's high bits: its low ones, by a remainder, gave 300,000 lengths in order a
        // median of 133,296 instead of 150,000.
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(1);
        let at = (u128::from(self.state) * u128::from(self.n)) >> 64;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(slot) = self.sample.get_mut(at) {
            *slot = len;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean with one decimal")]
    pub fn finish(mut self) -> Option<TextLength> {
        self.sample.sort_unstable();
        let k = self.sample.len();
        let p50 = *self.sample.get(k / 2)?;
        let p95 = self.sample[(k * 95 / 100).min(k - 1)];
        let mean = (self.sum as f64 / self.n as f64 * 10.0).round() / 10.0;
        Some(TextLength { min: self.min, max: self.max, mean, p50, p95 })
    }
}

#[cfg(test)]
mod tests {
    use super::{LENGTHS_KEPT, Lengths, TextLength};

    #[test]
    fn a_few_lengths_are_exact() {
        let mut lengths = Lengths::default();
        for len in [5, 1, 4, 2] {
            lengths.take(len);
        }
        let expected = TextLength { min: 1, max: 5, mean: 3.0, p50: 4, p95: 5 };
        assert_eq!(lengths.finish(), Some(expected));
        assert_eq!(Lengths::default().finish(), None);
    }

    /// 0 to 299,999 in order: if later lengths never entered the sample its median would be 50,000.
    #[test]
    fn of_many_lengths_a_sample_is_kept() {
        let n = 3 * LENGTHS_KEPT;
        let mut lengths = Lengths::default();
        (0..n).for_each(|len| lengths.take(len));
        assert_eq!(lengths.sample.len() as u64, LENGTHS_KEPT);
        let found = lengths.finish().unwrap();
        assert_eq!((found.min, found.max, found.mean), (0, n - 1, 149_999.5));
        assert!((147_000..153_000).contains(&found.p50), "{found:?}");
        assert!((282_000..288_000).contains(&found.p95), "{found:?}");
    }
}
