//! What a part found: tables and sentences for the page, numbers for programs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A table of the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// A column whose name begins with `>` is of numbers.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What one part found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub tables: Vec<Table>,
    /// Sentences below the tables: conditions, and what was left out.
    pub notes: Vec<String>,
    /// What was found to be wrong: one of them makes the command fail.
    pub problems: Vec<String>,
    /// Raw numbers, in SI units.
    pub numbers: Value,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns.len(), "a row has as many cells as there are columns");
        self.rows.push(cells.to_vec());
    }
}

impl Finding {
    /// Nothing was done, for this reason.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self { notes: vec![format!("Skipped: {}.", reason.into())], ..Self::default() }
    }

    /// Leaves it for the parent.
    pub(crate) fn write(&self, folder: &Path, part: &str) -> Result<(), String> {
        let path = file(folder, part);
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// What a part before left; `None` where it did not run.
    pub(crate) fn read(folder: &Path, part: &str) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(file(folder, part)).ok()?).ok()
    }

    /// A number of it, by the names on the way.
    pub(crate) fn number(&self, path: &str) -> Option<f64> {
        self.numbers.pointer(path)?.as_f64()
    }
}

fn file(folder: &Path, part: &str) -> PathBuf {
    folder.join(format!("{part}.json"))
}
