//! Parquet, through the crate of the same name and without Arrow.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::FileReader as _;
use ::parquet::file::serialized_reader::SerializedFileReader;
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};
use serde_json::{Map, Value};

use forgelm_artifact::hash::sha256_file;

use super::{FileRead, RawRow, RowReader, io_error};
use crate::problem::{Code, DataError, DataProblem, Place};

/// A page that claims to be longer is refused: no data set has texts that need it.
const GROUP_BYTES_MAX: i64 = 1 << 34;

/// The rows of a file, column types as stored.
pub(super) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    n_rows: u64,
    n_bytes: u64,
}

impl ParquetRows {
    /// Opens a file and reads its footer.
    ///
    /// # Errors
    /// If the footer or the schema is not Parquet's.
    pub fn open(path: &Path, file: File) -> Result<Self, DataError> {
        let n_bytes = file.metadata().map_err(io_error(path, 1))?.len();
        let opened = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            let sizes = reader.metadata().row_groups().iter();
            let largest = sizes.map(|group| group.total_byte_size()).max().unwrap_or(0);
            if largest > GROUP_BYTES_MAX {
                let text = format!("a row group of {largest} bytes; at most {GROUP_BYTES_MAX}");
                return Err(ParquetError::General(text));
            }
            Ok(RowIter::from_file_into(Box::new(reader)))
        });
        match opened {
            Ok(rows) => Ok(ParquetRows { path: path.to_owned(), rows, n_rows: 0, n_bytes }),
            Err(error) => Err(problem(path, None, &error).into()),
        }
    }
}

/// The crate was not written for hostile files and panics on some: that is an error like any other here.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ParquetError::General("the file is damaged".to_owned())))
}

fn problem(path: &Path, row: Option<u64>, error: &ParquetError) -> DataProblem {
    let found: String = error.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    let expected = "a Parquet file with Snappy, gzip or no compression";
    let problem = match row {
        None => DataProblem::file(Code::Parquet, path, found, expected),
        Some(line) => {
            DataProblem::row(Code::Parquet, &Place { file: path, line }, "", found, expected)
        }
    };
    match error {
        ParquetError::NYI(_) => {
            problem.hint("write it again with Snappy compression, or as JSON lines")
        }
        _ => problem,
    }
}

impl RowReader for ParquetRows {
    fn next_row(&mut self) -> Result<Option<RawRow>, DataError> {
        let line = self.n_rows + 1;
        let rows = &mut self.rows;
        match guarded(|| rows.next().transpose()) {
            Ok(None) => Ok(None),
            Ok(Some(row)) => {
                self.n_rows = line;
                Ok(Some(RawRow::Value { line, value: object(&row) }))
            }
            // Where the next row begins is not known after an error.
            Err(error) => Err(problem(&self.path, Some(line), &error).into()),
        }
    }

    fn finish(self: Box<Self>) -> Result<FileRead, DataError> {
        Ok(FileRead { sha256: sha256_file(&self.path)?, n_bytes: self.n_bytes })
    }
}

fn object(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
}

/// A cell as JSON. Numbers keep their value; what JSON has no word for (dates, decimals) becomes a text.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float(x) => f64::from(*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(text) => Value::String(text.clone()),
        // Texts of old writers that did not mark them as texts.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => Value::Null,
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(key, field)| (key_text(key), value(field)))
                .collect::<Map<String, Value>>(),
        ),
        other => Value::String(other.to_string()),
    }
}

fn key_text(key: &Field) -> String {
    match key {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}
