//! What the technical documentation says of a run beside its parameters and numbers: plain data, which
//! the run fills in as it finds it.

use serde_json::{Map, Value};

use super::course::Course;

/// Facts for the technical documentation. Empty where nothing is known.
#[derive(Clone, Debug, Default)]
pub struct TechnicalFacts {
    /// Documents made from a config alone: there was no run, and every one of them says so.
    pub is_standalone: bool,
    /// `data.governance` of the config, if configured.
    pub governance_answers: Option<Map<String, Value>>,
    /// Operating system, processor and its instructions.
    pub system: Map<String, Value>,
    /// The model's sizes, under the names of `config.json`.
    pub architecture: Map<String, Value>,
    /// What the objective is, in words, with its source.
    pub objective: Option<String>,
    /// What an input is: template, longest sequence, which texts.
    pub input: Map<String, Value>,
    /// Each data file by content.
    pub data_files: Vec<DataFileRecord>,
    /// What was done to rows, and how many were left out.
    pub data_filters: Map<String, Value>,
    /// Measures of security that were in effect in this run.
    pub guards: Vec<String>,
    /// The manifest of the version before.
    pub previous: Option<PreviousManifest>,
    /// Files that the config names as answers, by content.
    pub attachments: Vec<Attachment>,
    /// Languages of the model.
    pub languages: Vec<String>,
    /// The config without the sections that concern nobody else, secrets replaced.
    pub config: Option<Value>,
    /// `data_governance_report.json`.
    pub governance: Governance,
    /// What happened from step to step.
    pub course: Course,
}

/// What became of the governance report.
#[derive(Clone, Debug, Default)]
pub enum Governance {
    /// There is no data that was read.
    #[default]
    NotDue,
    /// It is there.
    Report {
        /// The document.
        document: Value,
        /// Number of data sets.
        n_datasets: u64,
        /// Where the report of the data audit was expected, when it could not be taken in.
        missing_audit: Option<String>,
    },
    /// It could not be made.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A data file by content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFileRecord {
    /// The data set that it belongs to, as configured.
    pub dataset: String,
    /// Its name within the data set.
    pub file: String,
    /// 64 hex digits.
    pub sha256: String,
    /// Size.
    pub size_bytes: u64,
    /// Rows, good and bad; `None` where they were not counted.
    pub rows: Option<u64>,
    /// The columns of its rows; empty where it was not read for them.
    pub fields: Vec<DataField>,
}

/// A column of a data file, or a member of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataField {
    /// As the file has it.
    pub name: String,
    /// What its values are.
    pub kind: FieldKind,
}

/// The kind of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// True or false.
    Boolean,
    /// Whole numbers.
    Integer,
    /// Numbers.
    Number,
    /// Texts.
    Text,
    /// Lists.
    List(Box<FieldKind>),
    /// Objects.
    Object(Vec<DataField>),
    /// Of several kinds, or of none.
    Other,
}

/// An earlier `annex_iv_metadata.json`.
#[derive(Clone, Debug)]
pub struct PreviousManifest {
    /// The file, as configured.
    pub file: String,
    /// Of its bytes.
    pub sha256: String,
    /// The state of its signature, as verifiers call it.
    pub signature: &'static str,
    /// Who signed, where that is known.
    pub keyid: Option<String>,
    /// The document.
    pub document: Value,
}

/// A file that the config names as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The key that names it.
    pub key: &'static str,
    /// As configured.
    pub file: String,
    /// Of its bytes.
    pub sha256: String,
}
