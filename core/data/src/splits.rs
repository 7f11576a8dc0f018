//! What is in each split of a run's data, for its documents: rows, columns, lengths of texts.
//!
//! The files are read once more, a row at a time; in memory are 8 bytes for each row of a
//! split, and a sample of the lengths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::audit::{Lengths, TextLength, masked, text_of};
use crate::dataset::DataFile;
use crate::prepare::Prepared;
use crate::problem::{Code, DataError, DataProblem};
use crate::sequences::Sequences;
use crate::shape::{COLUMNS_MAX, Shape};
use crate::source::{RawRow, open_rows};

/// What is in one split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SplitSheet {
    /// Records, each as often as it is used.
    pub n_samples: u64,
    /// Columns, in the order in which they first appear; what looks like a secret in them is masked.
    pub columns: Vec<String>,
    /// Lengths of the texts in characters; `None` where no row has a text, or where it cannot be told
    /// which split a row is in (several rows on one line, in different splits).
    pub text_length: Option<TextLength>,
    /// What its rows are like, by file; names as in `columns`.
    pub shapes: BTreeMap<PathBuf, Shape>,
}

/// The splits of a run's data: what trains, and what is held out.
///
/// # Errors
/// If a file cannot be read any more, or is not what it was when the run read it.
pub fn describe_splits(prepared: &Prepared) -> Result<[SplitSheet; 2], DataError> {
    let mut splits = [&prepared.train, &prepared.validation].map(Split::of);
    let mut seen: Vec<&Path> = Vec::new();
    for file in prepared.files.iter().flatten() {
        if !seen.contains(&file.path.as_path()) {
            seen.push(&file.path);
            read(file, &mut splits)?;
        }
    }
    Ok(splits.map(Split::finish))
}

/// A split while its files are read.
struct Split {
    n_samples: u64,
    /// The lines of its records, by file, sorted.
    lines: BTreeMap<PathBuf, Vec<u64>>,
    columns: Vec<String>,
    lengths: Lengths,
    is_unclear: bool,
    shapes: BTreeMap<PathBuf, Shape>,
}

impl Split {
    fn of(sequences: &Sequences) -> Self {
        let mut lines: BTreeMap<PathBuf, Vec<u64>> = BTreeMap::new();
        for unit in 0..sequences.len() {
            if let Some((file, line)) = sequences.origin(sequences.record(unit)) {
                lines.entry(file).or_default().push(line);
            }
        }
        lines.values_mut().for_each(|lines| lines.sort_unstable());
        Self {
            n_samples: sequences.len() as u64,
            lines,
            columns: Vec::new(),
            lengths: Lengths::default(),
            is_unclear: false,
            shapes: BTreeMap::new(),
        }
    }

    /// How often the records of a line are in it.
    fn count(&self, file: &Path, line: u64) -> usize {
        let Some(lines) = self.lines.get(file) else { return 0 };
        lines.partition_point(|&other| other <= line) - lines.partition_point(|&other| other < line)
    }

    fn take_columns<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        for name in names {
            if self.columns.len() < COLUMNS_MAX && !self.columns.contains(name) {
                self.columns.push(name.clone());
            }
        }
    }

    fn finish(self) -> SplitSheet {
        SplitSheet {
            n_samples: self.n_samples,
            columns: self.columns.iter().map(|name| masked(name)).collect(),
            text_length: self.lengths.finish().filter(|_| !self.is_unclear),
            shapes: self
                .shapes
                .into_iter()
                .map(|(file, shape)| (file, shape.renamed(masked)))
                .collect(),
        }
    }
}

/// The rows of one line: one, but for files that put many on a line.
#[derive(Default)]
struct Line {
    number: u64,
    /// Characters of each row that has a text.
    lengths: Vec<Option<u64>>,
}

impl Line {
    /// Gives the rows to the splits that their line is in.
    fn end(&mut self, file: &Path, splits: &mut [Split; 2]) {
        let lengths = std::mem::take(&mut self.lengths);
        let counts = [0, 1].map(|i| splits[i].count(file, self.number));
        let n_splits = counts.iter().filter(|&&n| n > 0).count();
        for (split, &n) in splits.iter_mut().zip(&counts).filter(|(_, n)| **n > 0) {
            // A row is used as often as every other one of its line, or nobody knows which is.
            let is_clear = lengths.len() == 1 || (n_splits == 1 && n % lengths.len().max(1) == 0);
            split.is_unclear |= !is_clear;
            let times = n / lengths.len().max(1);
            for length in lengths.iter().flatten() {
                (0..times).for_each(|_| split.lengths.take(*length));
            }
        }
    }
}

fn read(file: &DataFile, splits: &mut [Split; 2]) -> Result<(), DataError> {
    let mut reader = open_rows(&file.path)?;
    let mut line = Line::default();
    while let Some(row) = reader.next_row()? {
        take_row(&file.path, &row, &mut line, splits);
    }
    line.end(&file.path, splits);
    if reader.finish()?.sha256 != file.sha256 {
        let found = "changed after the run read it";
        let expected = "the file that was trained on";
        return Err(DataProblem::file(Code::Changed, &file.path, found, expected).into());
    }
    Ok(())
}

fn take_row(file: &Path, row: &RawRow, line: &mut Line, splits: &mut [Split; 2]) {
    let number = match row {
        RawRow::Text { line, .. } | RawRow::Value { line, .. } => *line,
        // A row that no run uses.
        RawRow::Wrong { .. } => return,
    };
    if number != line.number {
        line.end(file, splits);
        line.number = number;
    }
    let is_in = [0, 1].map(|i| splits[i].count(file, number) > 0);
    if is_in == [false, false] {
        return;
    }
    let Ok(row) = row.parse(file) else { return };
    let Some(map) = row.value.as_object() else { return };
    for (split, _) in splits.iter_mut().zip(is_in).filter(|(_, is_in)| *is_in) {
        split.take_columns(map.keys());
        let shape = Shape::of(&row.value);
        match split.shapes.get_mut(file) {
            Some(known) => known.take(shape),
            None => drop(split.shapes.insert(file.to_owned(), shape)),
        }
    }
    line.lengths.push(text_of(map).map(|text| text.chars().count() as u64));
}
