//! What is wrong with a config, and where: collected, then printed once at the edge.

use std::fmt::{self, Write as _};

/// The longest piece of a user's value that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// The run goes on, and the user probably meant something else. An error under `--strict`.
    Warning,
    /// The run does not start: exit 1.
    Error,
}

/// The kind of a finding, stable across versions; `as_str` is what machines read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The file is larger than [`crate::FILE_BYTES_MAX`] or expands to too much.
    TooLarge,
    /// The bytes are not UTF-8, or hold characters that YAML forbids.
    Encoding,
    /// The text is not YAML.
    Syntax,
    /// More than one YAML document.
    ManyDocuments,
    /// The document is not a mapping, or is empty.
    NotAMapping,
    /// A key that no section has.
    UnknownKey,
    /// A key written twice in one mapping, or under two names.
    DuplicateKey,
    /// A required key is absent.
    MissingKey,
    /// A null where a value is needed.
    NullValue,
    /// A value of another type.
    WrongType,
    /// A number outside its range, or a text that breaks its field's rule.
    OutOfRange,
    /// A word that is not one of the allowed ones.
    UnknownChoice,
    /// Two keys that cannot stand together.
    Conflict,
    /// A section that a pipeline stage may not have.
    RootOnly,
    /// An old name that is forwarded to a new one.
    Deprecated,
    /// A key that has no effect in this config.
    IgnoredKey,
    /// A secret, or key material, written in the file.
    SecretInFile,
    /// Legal, and rarely what is wanted.
    Doubtful,
    /// A feature that this version does not have.
    NotAvailable,
}

impl Code {
    /// The stable name, for `--format json` and for documentation.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "config/too-large",
            Self::Encoding => "config/encoding",
            Self::Syntax => "config/syntax",
            Self::ManyDocuments => "config/many-documents",
            Self::NotAMapping => "config/not-a-mapping",
            Self::UnknownKey => "config/unknown-key",
            Self::DuplicateKey => "config/duplicate-key",
            Self::MissingKey => "config/missing-key",
            Self::NullValue => "config/null-value",
            Self::WrongType => "config/wrong-type",
            Self::OutOfRange => "config/out-of-range",
            Self::UnknownChoice => "config/unknown-choice",
            Self::Conflict => "config/conflict",
            Self::RootOnly => "config/root-only",
            Self::Deprecated => "config/deprecated",
            Self::IgnoredKey => "config/ignored-key",
            Self::SecretInFile => "config/secret-in-file",
            Self::Doubtful => "config/doubtful",
            Self::NotAvailable => "config/not-available",
        }
    }
}

/// A position in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// The file's name as the caller gave it.
    pub file: String,
    /// Where; absent when the finding is about something that is not written.
    pub place: Option<Place>,
    /// Full path of the key, such as `training.learning_rate`; empty for the whole document.
    pub key: String,
    /// What is wrong, with the value found and what was expected; no full stop.
    pub message: String,
    /// The value found, cut to a sane length; never a secret.
    pub found: Option<String>,
    /// What would be right.
    pub expected: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// A finding with only its required parts; the others are added by the methods below.
    #[must_use]
    pub fn new(severity: Severity, code: Code, key: &str, message: String) -> Self {
        Self {
            severity,
            code,
            file: String::new(),
            place: None,
            key: key.to_owned(),
            message,
            found: None,
            expected: None,
            hint: None,
        }
    }

    /// An error.
    #[must_use]
    pub fn error(code: Code, key: &str, message: String) -> Self {
        Self::new(Severity::Error, code, key, message)
    }

    /// A warning.
    #[must_use]
    pub fn warning(code: Code, key: &str, message: String) -> Self {
        Self::new(Severity::Warning, code, key, message)
    }

    /// A note.
    #[must_use]
    pub fn note(code: Code, key: &str, message: String) -> Self {
        Self::new(Severity::Note, code, key, message)
    }

    /// Sets the place, if known.
    #[must_use]
    pub fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets what was found and what was expected.
    #[must_use]
    pub fn found_expected(mut self, found: &str, expected: &str) -> Self {
        self.found = Some(found.to_owned());
        self.expected = Some(expected.to_owned());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head())?;
        match self.severity {
            Severity::Error => {}
            Severity::Warning => f.write_str("warning: ")?,
            Severity::Note => f.write_str("note: ")?,
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Diagnostic {
    /// The place as it begins a message: `run.yaml:14:3: `.
    fn head(&self) -> String {
        match (self.file.is_empty(), self.place) {
            (true, None) => String::new(),
            (true, Some(place)) => format!("{}:{}: ", place.line, place.column),
            (false, None) => format!("{}: ", self.file),
            (false, Some(place)) => format!("{}:{}:{}: ", self.file, place.line, place.column),
        }
    }
}

/// Whether a rendering uses ANSI colors; never the only bearer of meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Plain text.
    Off,
    /// Bold places, red errors, yellow warnings.
    On,
}

/// The findings as text: one block each, in the order of the file, then, when any of them is an
/// error, the line `2 problems in ``run.yaml``; nothing was started`.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], color: Color) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        match color {
            Color::Off => {
                let _ = writeln!(out, "{diagnostic}");
            }
            Color::On => render_colored(&mut out, diagnostic),
        }
    }
    let errors: Vec<&Diagnostic> =
        diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    if let Some(first) = errors.first() {
        let noun = if errors.len() == 1 { "problem" } else { "problems" };
        let _ = writeln!(
            out,
            "{} {noun} in `{}`; nothing was started",
            errors.len(),
            if first.file.is_empty() { "the config" } else { &first.file }
        );
    }
    out
}

fn render_colored(out: &mut String, diagnostic: &Diagnostic) {
    const BOLD: &str = "\u{1b}[1m";
    const RESET: &str = "\u{1b}[0m";
    let (word, paint) = match diagnostic.severity {
        Severity::Error => ("", "\u{1b}[31m"),
        Severity::Warning => ("warning: ", "\u{1b}[33m"),
        Severity::Note => ("note: ", "\u{1b}[36m"),
    };
    let _ = writeln!(
        out,
        "{BOLD}{}{RESET}{paint}{word}{}{RESET}",
        diagnostic.head(),
        diagnostic.message
    );
    if let Some(hint) = &diagnostic.hint {
        let _ = writeln!(out, "  {BOLD}hint:{RESET} {hint}");
    }
}

/// A user's text as a message may repeat it, in backticks: escaped, cut at a sane length.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", escaped(text, QUOTED_CHARS_MAX))
}

/// At most `chars_max` characters of a text, with control and direction characters escaped.
pub(crate) fn escaped(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == chars_max {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The candidate closest to `name`, if it is close enough to be what was meant.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    if length > QUOTED_CHARS_MAX {
        return None;
    }
    let lower = name.to_lowercase().replace('-', "_");
    candidates
        .map(|c| {
            let plain = c.to_lowercase().replace('-', "_");
            (strsim::damerau_levenshtein(&lower, &plain), c)
        })
        .min_by_key(|&(distance, c)| (distance, c))
        .filter(|&(distance, c)| distance <= (length.max(c.len()) / 3).max(1))
        .map(|(_, c)| c)
}
