//! Opening a data set: every row is read and checked before anything else happens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_config::{Data, OnBadRow, TrainOn, TrainerType};

use crate::problem::{Code, DataError, DataProblem, Problems};
use crate::record::{self, Layout, Record, Rules};
use crate::rows::{Row, read_rows};

/// Of the rows, this share may be skipped under `on_bad_row: skip`.
const SKIPPED_MAX: f64 = 0.01;

/// One file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// As the configuration names it.
    pub path: PathBuf,
    /// Of the bytes that were read.
    pub sha256: Sha256Hex,
    /// Length.
    pub n_bytes: u64,
    /// Rows, good and bad.
    pub n_rows: u64,
}

/// A data set whose rows can all be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The records, in the order of the files and their rows.
    pub records: Vec<Record>,
    /// The files.
    pub files: Vec<DataFile>,
    /// Which columns were read.
    pub layout: Layout,
    /// Rows that were left out under `on_bad_row: skip`.
    pub skipped: Problems,
}

impl Dataset {
    /// A digest of what was read: the SHA-256 over the digests of the files, in order, as `<hex>\n` each; of a
    /// single file its own digest.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256Hex {
        if let [file] = self.files.as_slice() {
            return file.sha256.clone();
        }
        let mut hasher = Hasher::new();
        for file in &self.files {
            hasher.update(file.sha256.as_str().as_bytes());
            hasher.update(b"\n");
        }
        hasher.finish()
    }
}

/// Opens the data set of a `data:` section for a trainer.
///
/// # Errors
/// All problems of the rows at once, up to a number that is shown; or that the disk failed.
pub fn open(section: &Data, trainer: TrainerType) -> Result<Dataset, DataError> {
    let path = Path::new(&section.dataset_name_or_path);
    if trainer != TrainerType::Sft {
        let found = format!("data for `trainer_type: {trainer:?}`");
        return Err(DataProblem::file(Code::Columns, path, found, "`sft`")
            .hint("other trainers are not available yet")
            .into());
    }
    check_format(path)?;
    let rules = Rules {
        clean_text: section.clean_text,
        needs_assistant: section.train_on == TrainOn::Assistant,
    };
    let mut gathered =
        Gathered { file: Arc::new(path.to_path_buf()), rules, ..Gathered::default() };
    let read = read_rows(path, &mut |row| gathered.take(row))?;
    let Gathered { records, layout, problems, n_rows, no_layout, .. } = gathered;
    if let Some(problem) = no_layout {
        return Err(problem.into());
    }
    if n_rows == 0 {
        let problem = DataProblem::file(Code::NoRows, path, "no rows", "at least one row");
        return Err(problem.into());
    }
    let may_skip = section.on_bad_row == OnBadRow::Skip;
    if !problems.is_empty() && (!may_skip || records.is_empty()) {
        return Err(problems.into());
    }
    if share(problems.total, n_rows) > SKIPPED_MAX {
        let mut all = Problems::one(DataProblem::file(
            Code::TooManyBad,
            path,
            format!("{} of {n_rows} rows cannot be used", problems.total),
            "at most 1 % to skip",
        ));
        all.total += problems.total;
        all.shown.extend(problems.shown);
        return Err(all.into());
    }
    let Some(layout) = layout else {
        return Err(problems.into());
    };
    let file =
        DataFile { path: path.to_path_buf(), sha256: read.sha256, n_bytes: read.n_bytes, n_rows };
    Ok(Dataset { records, files: vec![file], layout, skipped: problems })
}

#[expect(clippy::cast_precision_loss, reason = "a share to compare with one in a hundred")]
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Rows as they come in.
#[derive(Default)]
struct Gathered {
    file: Arc<PathBuf>,
    rules: Rules,
    records: Vec<Record>,
    /// Of the first row that is an object.
    layout: Option<Layout>,
    no_layout: Option<DataProblem>,
    problems: Problems,
    n_rows: u64,
}

impl Gathered {
    fn take(&mut self, row: Result<Row<'_>, DataProblem>) {
        self.n_rows += 1;
        if self.no_layout.is_some() {
            return;
        }
        match row.and_then(|row| self.record(&row)) {
            Ok(Some(record)) => self.records.push(record),
            Ok(None) => {}
            Err(problem) => self.problems.push(problem),
        }
    }

    fn record(&mut self, row: &Row<'_>) -> Result<Option<Record>, DataProblem> {
        let columns = record::columns(row)?;
        let layout = match &self.layout {
            Some(layout) => layout,
            None => match Layout::of(columns) {
                Some(layout) => self.layout.insert(layout),
                None => {
                    let found = record::describe_columns(columns);
                    let expected = "for `sft` one of `text`; `messages`; (`User` or `instruction`) and (`Assistant`, \
                         `output` or `response`); `prompt` and `completion`";
                    self.no_layout =
                        Some(DataProblem::row(Code::Columns, &row.place, "", found, expected));
                    return Ok(None);
                }
            },
        };
        let kind = record::read(row, layout, self.rules)?;
        Ok(Some(Record { file: Arc::clone(&self.file), line: row.place.line, kind }))
    }
}

/// Refuses what is not read yet by what it is.
fn check_format(path: &Path) -> Result<(), DataProblem> {
    let expected = "a local file that ends in `.jsonl` or `.json`";
    let problem = |code, found: String| DataProblem::file(code, path, found, expected);
    let not_yet = |found: &str| problem(Code::Format, format!("{found} is not available yet"));
    let Ok(metadata) = std::fs::metadata(path) else {
        if looks_like_hub_id(path) {
            return Err(
                not_yet("no such file; a data set from a hub").hint("download it as JSON lines")
            );
        }
        return Err(problem(Code::File, "does not exist".to_owned()));
    };
    if metadata.is_dir() {
        return Err(not_yet("is a folder; a folder of data files"));
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("jsonl" | "json") => Ok(()),
        Some("csv") => Err(not_yet("the format CSV")),
        Some("parquet") => Err(not_yet("the format Parquet")),
        // A pipe or a device is refused for what it is when it is opened.
        _ if !metadata.is_file() => Ok(()),
        _ => Err(problem(Code::Format, "cannot tell the format from the name".to_owned())),
    }
}

/// As a hub would name a data set: at most one `/`, and only plain characters.
fn looks_like_hub_id(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let has_extension = [".json", ".jsonl", ".csv", ".parquet"].iter().any(|e| text.ends_with(e));
    text.chars().all(plain)
        && text.matches('/').count() <= 1
        && !text.starts_with(['/', '.', '~'])
        && !has_extension
}
