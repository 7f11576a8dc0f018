//! What is in data files that should be known before anything is trained on them: personal data,
//! secrets, near-duplicates, rows of one split in another, and text of poor quality.
//!
//! ```text
//! path -> splits -> rows -> strings, text -> counts, fingerprints -> pairs, leaks -> report
//!         inputs    source  look             split                   near           document
//! ```
//!
//! It needs no model and no config. Every string of a row is searched, whatever column it is in, and so
//! is a row that no run could use. What was found is never kept: a finding is a file, a line and a
//! kind. Memory is a batch of rows, and 8 bytes a row for its fingerprint (528 with MinHash).
//!
//! Invariant: the report does not depend on the number of threads
//! (test `the_report_is_the_same_on_any_number_of_threads`).

mod document;
mod inputs;
mod look;
mod minhash;
mod near;
mod payload;
mod prints;
mod quality;
mod simhash;
mod split;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forgelm_artifact::Class;
use forgelm_artifact::hash::Sha256Hex;
use forgelm_privacy::{
    PII_MASK, PiiKind, SECRET_MASK, SecretKind, Severity, mask_pii, mask_secrets,
};

use crate::dataset::{BATCH_BYTES, BATCH_ROWS};
use crate::parallel;
use crate::problem::DataError;
use crate::source::{RawRow, RowReader, open_rows};
pub use document::Gate;
pub(crate) use payload::text_of;
pub use quality::QualityFlag;
pub(crate) use split::Lengths;
pub use split::{SplitReport, TextLength};

/// Findings of a kind that are named with their lines.
pub const SHOWN_MAX: u64 = 20;
/// Splits between which leaks are looked for.
const COMPARED_SPLITS_MAX: usize = 16;

/// How near-duplicates are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dedup {
    /// By fingerprints of 64 bits.
    Simhash {
        /// Bits in which near-duplicates may differ.
        distance: u32,
    },
    /// By signatures of 128 numbers.
    Minhash {
        /// The least share of words that near-duplicates have in common, of those that either has.
        similarity: f64,
    },
}

/// What an audit looks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AuditSettings {
    /// How near-duplicates are found.
    pub dedup: Dedup,
    /// Whether text is judged.
    pub quality_filter: bool,
    /// Threads that search rows.
    pub threads: usize,
}

/// What was found where. It has no text of the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFinding {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// What it is.
    pub kind: FindingKind,
}

/// What a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A secret.
    Secret(SecretKind),
    /// Personal data.
    Pii(PiiKind),
}

impl FindingKind {
    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Secret(kind) => kind.name(),
            FindingKind::Pii(kind) => kind.name(),
        }
    }

    /// How bad it is; every secret is critical.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            FindingKind::Secret(_) => Severity::Critical,
            FindingKind::Pii(kind) => kind.severity(),
        }
    }
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedFile {
    /// Where it is.
    pub path: PathBuf,
    /// The split it belongs to.
    pub split: String,
    /// Digest and length, unless it could not be read to its end.
    pub read: Option<(Sha256Hex, u64)>,
}

/// Rows of one split that have a near-duplicate in another, and the reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The two splits.
    pub splits: [String; 2],
    /// Rows with a fingerprint.
    pub rows: [u64; 2],
    /// Those of them that are in the other split too.
    pub leaked: [u64; 2],
}

/// Everything that an audit found.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditReport {
    /// What was looked for.
    pub settings: AuditSettings,
    /// By split, in the order in which they were read.
    pub splits: Vec<(String, SplitReport)>,
    /// The files, in the order in which they were read.
    pub inputs: Vec<AuditedFile>,
    /// Between splits.
    pub overlaps: Vec<Overlap>,
    /// How much personal data of each kind.
    pub pii: BTreeMap<PiiKind, u64>,
    /// How many secrets of each kind.
    pub secrets: BTreeMap<SecretKind, u64>,
    /// The first ones of each kind.
    pub findings: Vec<AuditFinding>,
    /// Files that could not be read to their end: why, and which exit code that is.
    pub unreadable: Vec<(PathBuf, String, Class)>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Reads a file or a folder and says what is in it. Nothing is written.
///
/// # Errors
/// If there is no data file. One that cannot be read to its end is part of the report, and so is what
/// was found in it before.
pub fn audit(path: &Path, settings: &AuditSettings) -> Result<AuditReport, DataError> {
    let inputs = inputs::find(path)?;
    let mut report = AuditReport {
        settings: *settings,
        splits: Vec::new(),
        inputs: Vec::new(),
        overlaps: Vec::new(),
        pii: BTreeMap::new(),
        secrets: BTreeMap::new(),
        findings: Vec::new(),
        unreadable: Vec::new(),
        notes: inputs.notes,
    };
    let maker = prints::Maker::new(settings.dedup);
    let mut fingerprints = Vec::new();
    for (name, files) in inputs.splits {
        let mut split = split::Reading::default();
        for file in &files {
            let read = read_file(file, settings, &maker, &mut split, &mut report);
            let (read, error) = match read {
                Ok(read) => (Some(read), None),
                Err(error) => (None, Some(error)),
            };
            report.inputs.push(AuditedFile { path: file.clone(), split: name.clone(), read });
            if let Some(error) = error {
                let text = chain(&error);
                split.error.get_or_insert_with(|| (file.clone(), text.clone()));
                report.unreadable.push((file.clone(), text, error.class()));
            }
        }
        let (summary, rows) = split.finish(settings);
        for (&kind, n) in &summary.pii {
            *report.pii.entry(kind).or_default() += n;
        }
        for (&kind, n) in &summary.secrets {
            *report.secrets.entry(kind).or_default() += n;
        }
        report.splits.push((name, summary));
        fingerprints.push(rows);
    }
    compare_splits(&mut report, &fingerprints);
    let notes = document::notes(&report);
    report.notes.extend(notes);
    Ok(report)
}

/// The words of an error. They may repeat the name of a column, which may be anything.
fn chain(error: &DataError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    masked(&text)
}

/// A text of the data that is shown.
pub(crate) fn masked(text: &str) -> String {
    mask_pii(&mask_secrets(text, SECRET_MASK).text, PII_MASK).text
}

/// Reads a file to its end; what came before an error is counted.
fn read_file(
    path: &Path,
    settings: &AuditSettings,
    maker: &prints::Maker,
    split: &mut split::Reading,
    report: &mut AuditReport,
) -> Result<(Sha256Hex, u64), DataError> {
    let mut reader = open_rows(path)?;
    loop {
        let (rows, end) = next_rows(reader.as_mut());
        let each = |row: &RawRow| look::look(path, row, maker, settings.quality_filter);
        for row in parallel::map(settings.threads, &rows, each) {
            name_findings(path, &row, split, report);
            split.take(row);
        }
        match end {
            End::NotYet => {}
            End::Reached => break,
            End::Failed(error) => return Err(*error),
        }
    }
    let read = reader.finish()?;
    Ok((read.sha256, read.n_bytes))
}

enum End {
    NotYet,
    Reached,
    Failed(Box<DataError>),
}

/// The next rows, and what came after them.
fn next_rows(reader: &mut dyn RowReader) -> (Vec<RawRow>, End) {
    let mut rows = Vec::new();
    let mut n_bytes = 0;
    while rows.len() < BATCH_ROWS && n_bytes < BATCH_BYTES {
        match reader.next_row() {
            Ok(Some(row)) => {
                n_bytes += row.n_bytes();
                rows.push(row);
            }
            Ok(None) => return (rows, End::Reached),
            Err(error) => return (rows, End::Failed(Box::new(error))),
        }
    }
    (rows, End::NotYet)
}

/// Keeps the places of the first findings of each kind.
fn name_findings(
    path: &Path,
    row: &look::Looked,
    split: &split::Reading,
    report: &mut AuditReport,
) {
    let mut name = |kind, n_before: u64| {
        if n_before < SHOWN_MAX {
            report.findings.push(AuditFinding { file: path.to_owned(), line: row.line, kind });
        }
    };
    for kind in row.secrets.keys() {
        let n = report.secrets.get(kind).unwrap_or(&0) + split.secrets.get(kind).unwrap_or(&0);
        name(FindingKind::Secret(*kind), n);
    }
    for kind in row.pii.keys() {
        let n = report.pii.get(kind).unwrap_or(&0) + split.pii.get(kind).unwrap_or(&0);
        name(FindingKind::Pii(*kind), n);
    }
}

fn compare_splits(report: &mut AuditReport, fingerprints: &[prints::Distinct]) {
    let with_rows: Vec<usize> =
        (0..fingerprints.len()).filter(|&i| fingerprints[i].n_rows() > 0).collect();
    if with_rows.len() > COMPARED_SPLITS_MAX {
        let text = format!("leakage: not looked for between {} splits", with_rows.len());
        report.notes.push(text);
        return;
    }
    for (nth, &a) in with_rows.iter().enumerate() {
        for &b in &with_rows[nth + 1..] {
            let dedup = report.settings.dedup;
            let (leaked, is_whole) = fingerprints[a].leaks(&fingerprints[b], dedup);
            let splits = [a, b].map(|i| report.splits[i].0.clone());
            if !is_whole {
                let [a, b] = &splits;
                report.notes.push(format!("leakage of {a} and {b}: counted in part, at least"));
            }
            let rows = [a, b].map(|i| fingerprints[i].n_rows());
            report.overlaps.push(Overlap { splits, rows, leaked });
        }
    }
}
