//! What can be wrong with data, and how it is said.

use std::fmt;
use std::path::PathBuf;

use forgelm_artifact::Class;
use forgelm_artifact::jsonl::JsonlError;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::WriteError;
use forgelm_tokenize::{TemplateError, TokenizeError};

use crate::store::StoreError;

/// Problems shown in full; the others are only counted.
pub(crate) const SHOWN_MAX: usize = 20;

/// The kinds of problem, each with a name that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The file does not exist or cannot be opened.
    File,
    /// Not a regular file: a folder, a pipe, a device.
    FileKind,
    /// A format that is not read yet, or none that is known.
    Format,
    /// A file without a row.
    NoRows,
    /// Fewer rows than the run needs.
    TooFewRows,
    /// A line that is not JSON.
    Json,
    /// A line above the cap.
    LineLength,
    /// Bytes that are not UTF-8.
    Utf8,
    /// An escaped half of a surrogate pair.
    Surrogate,
    /// A NUL in a text.
    Nul,
    /// A row that is not an object.
    Row,
    /// The columns fit no layout of the trainer.
    Columns,
    /// A field that the layout needs is missing.
    FieldMissing,
    /// A field of another type than the layout needs.
    FieldType,
    /// A text that is empty.
    Empty,
    /// A conversation without a message.
    MessagesEmpty,
    /// A message without a role, or with one that is not known.
    Role,
    /// A message without content.
    ContentNull,
    /// Content as a list of parts.
    ContentParts,
    /// A second system message, or one that is not the first message.
    SystemTwice,
    /// A conversation that ends with the user's turn.
    EndsWithUser,
    /// Two turns of the assistant in a row.
    AssistantTwice,
    /// A conversation without a turn of the assistant.
    NoAssistant,
    /// The chat template refuses or fails.
    Template,
    /// Text of a special token where it cannot be kept apart from the template's own.
    SpecialText,
    /// The tokenizer refuses a text.
    Tokenize,
    /// Too many rows have nothing left to train.
    AllMasked,
    /// More rows were skipped than may be.
    TooManyBad,
    /// A compressed file that is damaged, cut off, or far larger than it looks.
    Compressed,
    /// Quotes or the number of cells of a CSV file.
    Csv,
    /// A file that is not Parquet, or uses what is not read.
    Parquet,
    /// A label that is no truth value.
    Label,
    /// Labelled answers of which all are desirable, or none is.
    OneClass,
    /// The preferred answer equals the other one.
    Same,
    /// Two answers without a prompt that both begin with.
    PromptDiffers,
    /// A prompt that ends with the assistant's turn.
    EndsWithAssistant,
    /// Weights of a mixture of data sets.
    Mix,
    /// A file that changed while it was read.
    Changed,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 38] = [
        Code::File,
        Code::FileKind,
        Code::Format,
        Code::NoRows,
        Code::TooFewRows,
        Code::Json,
        Code::LineLength,
        Code::Utf8,
        Code::Surrogate,
        Code::Nul,
        Code::Row,
        Code::Columns,
        Code::FieldMissing,
        Code::FieldType,
        Code::Empty,
        Code::MessagesEmpty,
        Code::Role,
        Code::ContentNull,
        Code::ContentParts,
        Code::SystemTwice,
        Code::EndsWithUser,
        Code::AssistantTwice,
        Code::NoAssistant,
        Code::Template,
        Code::SpecialText,
        Code::Tokenize,
        Code::AllMasked,
        Code::TooManyBad,
        Code::Compressed,
        Code::Csv,
        Code::Parquet,
        Code::Label,
        Code::OneClass,
        Code::Same,
        Code::PromptDiffers,
        Code::EndsWithAssistant,
        Code::Mix,
        Code::Changed,
    ];

    /// The name used in messages and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Code::File => "E-DATA-FILE",
            Code::FileKind => "E-DATA-FILE-KIND",
            Code::Format => "E-DATA-FORMAT",
            Code::NoRows => "E-DATA-NO-ROWS",
            Code::TooFewRows => "E-DATA-TOO-FEW-ROWS",
            Code::Json => "E-DATA-JSON",
            Code::LineLength => "E-DATA-LINE-LENGTH",
            Code::Utf8 => "E-DATA-UTF8",
            Code::Surrogate => "E-DATA-SURROGATE",
            Code::Nul => "E-DATA-NUL",
            Code::Row => "E-DATA-ROW",
            Code::Columns => "E-DATA-COLUMNS",
            Code::FieldMissing => "E-DATA-FIELD-MISSING",
            Code::FieldType => "E-DATA-FIELD-TYPE",
            Code::Empty => "E-DATA-EMPTY",
            Code::MessagesEmpty => "E-DATA-MESSAGES-EMPTY",
            Code::Role => "E-DATA-ROLE",
            Code::ContentNull => "E-DATA-CONTENT-NULL",
            Code::ContentParts => "E-DATA-CONTENT-PARTS",
            Code::SystemTwice => "E-DATA-SYSTEM-TWICE",
            Code::EndsWithUser => "E-DATA-ENDS-WITH-USER",
            Code::AssistantTwice => "E-DATA-ASSISTANT-TWICE",
            Code::NoAssistant => "E-DATA-NO-ASSISTANT",
            Code::Template => "E-DATA-TEMPLATE",
            Code::SpecialText => "E-DATA-SPECIAL-TEXT",
            Code::Tokenize => "E-DATA-TOKENIZE",
            Code::AllMasked => "E-DATA-ALL-MASKED",
            Code::TooManyBad => "E-DATA-TOO-MANY-BAD",
            Code::Compressed => "E-DATA-COMPRESSED",
            Code::Csv => "E-DATA-CSV",
            Code::Parquet => "E-DATA-PARQUET",
            Code::Label => "E-DATA-LABEL",
            Code::OneClass => "E-DATA-ONE-CLASS",
            Code::Same => "E-DATA-SAME",
            Code::PromptDiffers => "E-DATA-PROMPT-DIFFERS",
            Code::EndsWithAssistant => "E-DATA-ENDS-WITH-ASSISTANT",
            Code::Mix => "E-DATA-MIX",
            Code::Changed => "E-DATA-CHANGED",
        }
    }

    /// The code of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.name() == name)
    }

    /// True if a small share of such rows is left out and listed whatever `on_bad_row` says: they are what
    /// annotators leave behind, not a file that was read wrongly.
    #[must_use]
    pub fn is_minor(self) -> bool {
        matches!(self, Code::Same | Code::PromptDiffers)
    }
}

/// One thing wrong with a data file or one of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataProblem {
    /// The kind.
    pub code: Code,
    /// The file, as the configuration names it.
    pub file: PathBuf,
    /// The line, from 1; `None` for the file as a whole.
    pub line: Option<u64>,
    /// The field, as `messages[2].content`; empty for the row as a whole.
    pub field: String,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl DataProblem {
    /// A problem of a row.
    pub(crate) fn row(
        code: Code,
        place: &Place<'_>,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        DataProblem {
            code,
            file: place.file.to_path_buf(),
            line: Some(place.line),
            field: field.into(),
            found: found.into(),
            expected: expected.into(),
            hint: String::new(),
        }
    }

    /// A problem of a whole file.
    pub(crate) fn file(
        code: Code,
        file: &std::path::Path,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        DataProblem {
            code,
            file: file.to_path_buf(),
            line: None,
            field: String::new(),
            found: found.into(),
            expected: expected.into(),
            hint: String::new(),
        }
    }

    /// With advice.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for DataProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        f.write_str(&self.found)?;
        if !self.expected.is_empty() {
            write!(f, "; expected {}", self.expected)?;
        }
        write!(f, " [{}]", self.code.name())?;
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Where a row is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub file: &'a std::path::Path,
    pub line: u64,
}

/// Many problems: the first ones in full, all of them counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    /// The first ones, in the order of the rows.
    pub shown: Vec<DataProblem>,
    /// How many there are.
    pub total: u64,
}

impl Problems {
    /// A single problem.
    #[must_use]
    pub fn one(problem: DataProblem) -> Self {
        Problems { shown: vec![problem], total: 1 }
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Adds all of another list.
    pub(crate) fn append(&mut self, other: Problems) {
        self.total += other.total;
        let room = SHOWN_MAX.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.into_iter().take(room));
    }

    pub(crate) fn push(&mut self, problem: DataProblem) {
        self.total += 1;
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(problem);
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.shown {
            writeln!(f, "{problem}")?;
        }
        let hidden = self.total - self.shown.len() as u64;
        if hidden > 0 {
            writeln!(f, "… and {hidden} more")?;
        }
        let s = if self.total == 1 { "" } else { "s" };
        write!(f, "{} problem{s} in the data; nothing was started", self.total)
    }
}

impl std::error::Error for Problems {}

/// Why data could not be opened or rendered.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The data is wrong: exit 1.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The disk failed.
    #[error(transparent)]
    Read(#[from] JsonlError),
    /// A file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The token cache could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The token cache could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Conversations, and no chat template.
    #[error(transparent)]
    NoTemplate(#[from] TemplateError),
    /// The tokenizer cannot be described.
    #[error(transparent)]
    Tokenizer(#[from] TokenizeError),
}

impl DataError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            DataError::Problems(_) => Class::Input,
            DataError::Read(error) => error.class(),
            DataError::Open(error) => error.class(),
            DataError::Write(error) => error.class(),
            DataError::Store(error) => error.class(),
            DataError::NoTemplate(_) => Class::Input,
            DataError::Tokenizer(_) => Class::Runtime,
        }
    }
}

impl From<DataProblem> for DataError {
    fn from(problem: DataProblem) -> Self {
        DataError::Problems(Problems::one(problem))
    }
}
