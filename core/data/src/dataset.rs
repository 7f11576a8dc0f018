//! A data set as a stream of rows, and whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_config::{Data, OnBadRow, TrainOn, TrainerType};
use serde_json::Value;

use crate::find::{SourceFiles, find_files};
use crate::is_hub_id;
use crate::problem::{Code, DataError, DataProblem, Problems};
use crate::record::{self, Layout, Record, RecordKind, Rules};
use crate::source::{RawRow, RowReader, open_rows};

/// Of the rows, this share may be skipped.
const SKIPPED_MAX: f64 = 0.01;

/// Rows and bytes of a batch: enough for every thread, little beside a model.
pub(crate) const BATCH_ROWS: usize = 4096;
pub(crate) const BATCH_BYTES: usize = 8 << 20;

/// One file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// As the configuration names it, or inside the folder that it names.
    pub path: PathBuf,
    /// Of the bytes that were read.
    pub sha256: Sha256Hex,
    /// Length.
    pub n_bytes: u64,
    /// Rows, good and bad.
    pub n_rows: u64,
}

/// A digest of what was read: the SHA-256 over the digests of the files, in order, as `<hex>\n` each; of a
/// single file its own digest.
#[must_use]
pub fn fingerprint(files: &[DataFile]) -> Sha256Hex {
    if let [file] = files {
        return file.sha256.clone();
    }
    let mut hasher = Hasher::new();
    for file in files {
        hasher.update(file.sha256.as_str().as_bytes());
        hasher.update(b"\n");
    }
    hasher.finish()
}

/// A data set whose rows can all be used, in memory: for tests and small sets. A run reads by
/// [`prepare`](crate::prepare).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The records, in the order of the files and their rows.
    pub records: Vec<Record>,
    /// The files.
    pub files: Vec<DataFile>,
    /// Which columns were read.
    pub layout: Layout,
    /// Rows that were left out.
    pub skipped: Problems,
}

impl Dataset {
    /// See [`fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> Sha256Hex {
        fingerprint(&self.files)
    }
}

/// Opens the training split of the first data set of a `data:` section for a trainer.
///
/// # Errors
/// All problems of the rows at once, up to a number that is shown; or that the disk failed.
pub fn open(section: &Data, trainer: TrainerType) -> Result<Dataset, DataError> {
    let name = &section.dataset_name_or_path;
    if is_hub_id(name) {
        let expected = "a file or a folder";
        let found = "no such file; this is the name of a data set on a hub";
        return Err(DataProblem::file(Code::File, Path::new(name), found, expected).into());
    }
    let files = find_files(name, Path::new(name))?.train;
    let mut stream = RowStream::new(&files, trainer, Rules::of(section));
    let mut gathered = Gathered::default();
    let mut records = Vec::new();
    while let Some(batch) = stream.next_batch()? {
        let reader = stream.records();
        for row in &batch.rows {
            records.extend(gathered.take(reader.record(&batch, row)));
        }
    }
    let (files, layout) = stream.finish(&gathered)?;
    let skipped = gathered.judge(&files, section.on_bad_row)?;
    Ok(Dataset { records, files, layout, skipped })
}

/// One record of a file, read again; `None` if there is none on that line.
///
/// # Errors
/// If the file cannot be read.
pub fn read_record(
    path: &Path,
    line: u64,
    section: &Data,
    trainer: TrainerType,
) -> Result<Option<Record>, DataError> {
    let files = [path.to_owned()];
    let mut stream = RowStream::new(&files, trainer, Rules::of(section));
    while let Some(batch) = stream.next_batch()? {
        let reader = stream.records();
        for row in &batch.rows {
            match reader.record(&batch, row) {
                Ok(record) if record.line == line => return Ok(Some(record)),
                Ok(record) if record.line > line => return Ok(None),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// The columns of some lines of a file of prompts, each as a JSON object: what rewards read.
///
/// # Errors
/// If the file cannot be read.
pub fn read_columns(
    path: &Path,
    section: &Data,
    lines: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, String>, DataError> {
    let files = [path.to_owned()];
    let mut stream = RowStream::new(&files, TrainerType::Grpo, Rules::of(section));
    let mut found = BTreeMap::new();
    while let Some(batch) = stream.next_batch()? {
        let reader = stream.records();
        let records = batch.rows.iter().filter_map(|row| reader.record(&batch, row).ok());
        for record in records.filter(|record| lines.contains(&record.line)) {
            if let RecordKind::Prompt { columns, .. } = record.kind {
                found.insert(record.line, Value::Object(columns).to_string());
            }
        }
    }
    Ok(found)
}

/// Reads the first rows of a data set, to find what is wrong with a whole file before anything else is done.
///
/// # Errors
/// If the first file cannot be read, fits no layout of the trainer, or holds rows at its start that may not be
/// skipped.
pub fn check_first_rows(
    files: &SourceFiles,
    section: &Data,
    trainer: TrainerType,
) -> Result<(), DataError> {
    let mut stream = RowStream::new(&files.train, trainer, Rules::of(section));
    let Some(batch) = stream.next_batch()? else {
        return stream.finish(&Gathered::default()).map(|_| ());
    };
    let mut gathered = Gathered::default();
    let reader = stream.records();
    for row in &batch.rows {
        gathered.take(reader.record(&batch, row));
    }
    if section.on_bad_row == OnBadRow::Error && !gathered.hard.is_empty() {
        return Err(gathered.hard.into());
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a share to compare with one in a hundred")]
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl Rules {
    pub(crate) fn of(section: &Data) -> Rules {
        Rules {
            clean_text: section.clean_text,
            needs_assistant: section.train_on == TrainOn::Assistant,
        }
    }
}

/// The rows of some files, in order, a batch at a time.
pub(crate) struct RowStream<'f> {
    files: &'f [PathBuf],
    trainer: TrainerType,
    rules: Rules,
    /// Of the first row that is an object.
    layout: Option<Layout>,
    done: Vec<DataFile>,
    reading: Option<Reading>,
}

struct Reading {
    path: Arc<PathBuf>,
    reader: Box<dyn RowReader>,
    n_rows: u64,
}

/// Rows of one file.
pub(crate) struct Batch {
    /// Its number.
    pub file: usize,
    pub path: Arc<PathBuf>,
    pub rows: Vec<RawRow>,
}

impl<'f> RowStream<'f> {
    pub fn new(files: &'f [PathBuf], trainer: TrainerType, rules: Rules) -> Self {
        RowStream { files, trainer, rules, layout: None, done: Vec::new(), reading: None }
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// If nothing more can be read, or the columns fit no layout of the trainer.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, DataError> {
        loop {
            let file = self.done.len();
            let Some(mut reading) = self.reading.take() else {
                let Some(path) = self.files.get(file) else { return Ok(None) };
                let reader = open_rows(path)?;
                self.reading = Some(Reading { path: Arc::new(path.clone()), reader, n_rows: 0 });
                continue;
            };
            let mut rows = Vec::new();
            let mut n_bytes = 0;
            let mut is_end = false;
            while rows.len() < BATCH_ROWS && n_bytes < BATCH_BYTES {
                let Some(row) = reading.reader.next_row()? else {
                    is_end = true;
                    break;
                };
                n_bytes += row.n_bytes();
                rows.push(row);
            }
            reading.n_rows += rows.len() as u64;
            let path = Arc::clone(&reading.path);
            if is_end {
                let read = reading.reader.finish()?;
                self.done.push(DataFile {
                    path: path.to_path_buf(),
                    sha256: read.sha256,
                    n_bytes: read.n_bytes,
                    n_rows: reading.n_rows,
                });
            } else {
                self.reading = Some(reading);
            }
            if rows.is_empty() {
                continue;
            }
            let batch = Batch { file, path, rows };
            self.settle_layout(&batch)?;
            return Ok(Some(batch));
        }
    }

    /// The first row that is an object decides the layout.
    fn settle_layout(&mut self, batch: &Batch) -> Result<(), DataError> {
        if self.layout.is_some() {
            return Ok(());
        }
        for row in &batch.rows {
            let Ok(row) = row.parse(&batch.path) else { continue };
            let Ok(columns) = record::columns(&row) else { continue };
            let Some(layout) = Layout::of(self.trainer, columns) else {
                let found = record::describe_columns(columns);
                let expected = record::expected_columns(self.trainer);
                let problem = DataProblem::row(Code::Columns, &row.place, "", found, expected);
                return Err(problem.into());
            };
            self.layout = Some(layout);
            return Ok(());
        }
        Ok(())
    }

    /// What reads the rows of the last batch.
    pub fn records(&self) -> RecordReader<'_> {
        RecordReader { layout: self.layout.as_ref(), rules: self.rules }
    }

    /// What was read, after the last batch.
    ///
    /// # Errors
    /// If there was no row that is an object: with what is wrong with the rows.
    pub fn finish(self, gathered: &Gathered) -> Result<(Vec<DataFile>, Layout), DataError> {
        let n_rows: u64 = self.done.iter().map(|file| file.n_rows).sum();
        let path = self.files.first().map_or(Path::new(""), PathBuf::as_path);
        match self.layout {
            Some(layout) => Ok((self.done, layout)),
            None if n_rows == 0 => {
                Err(DataProblem::file(Code::NoRows, path, "no rows", "at least one row").into())
            }
            None => Err(gathered.hard.clone().into()),
        }
    }
}

/// Rows to records, on any thread.
#[derive(Clone, Copy)]
pub(crate) struct RecordReader<'l> {
    layout: Option<&'l Layout>,
    rules: Rules,
}

impl RecordReader<'_> {
    /// A row as a record.
    pub fn record(&self, batch: &Batch, row: &RawRow) -> Result<Record, Box<DataProblem>> {
        let row = row.parse(&batch.path)?;
        let columns = record::columns(&row).map_err(Box::new)?;
        // The first row that is an object has decided the layout; this one is an object.
        let layout = self.layout.expect("settled when the batch was read");
        let kind = record::read(&row, columns, layout, self.rules).map_err(Box::new)?;
        Ok(Record { file: Arc::clone(&batch.path), line: row.place.line, kind })
    }
}

/// What is wrong with the rows of a data set.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Problems that a run does not start with.
    hard: Problems,
    /// Problems of which a few are left out.
    minor: Problems,
    n_good: u64,
}

impl Gathered {
    /// Keeps a problem, and passes a good row on.
    pub fn take<T>(&mut self, result: Result<T, Box<DataProblem>>) -> Option<T> {
        match result {
            Ok(good) => {
                self.n_good += 1;
                Some(good)
            }
            Err(problem) => {
                let list = if problem.code.is_minor() { &mut self.minor } else { &mut self.hard };
                list.push(*problem);
                None
            }
        }
    }

    /// Whether the data set can be used; the rows that are left out.
    pub fn judge(self, files: &[DataFile], on_bad_row: OnBadRow) -> Result<Problems, DataError> {
        let n_rows: u64 = files.iter().map(|file| file.n_rows).sum();
        let may_skip = on_bad_row == OnBadRow::Skip;
        let is_refused = !self.hard.is_empty() && !may_skip;
        let mut all = self.hard;
        all.append(self.minor);
        if all.is_empty() {
            return Ok(all);
        }
        if is_refused || self.n_good == 0 {
            return Err(all.into());
        }
        if share(all.total, n_rows) > SKIPPED_MAX {
            let path = files.first().map_or(Path::new(""), |file| &file.path);
            let found = format!("{} of {n_rows} rows cannot be used", all.total);
            let expected = "at most 1 % to skip";
            let mut with_summary =
                Problems::one(DataProblem::file(Code::TooManyBad, path, found, expected));
            with_summary.append(all);
            return Err(with_summary.into());
        }
        Ok(all)
    }
}
