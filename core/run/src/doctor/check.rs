//! One line of the answer.

use crate::error::RunError;
use serde_json::{Map, Value, json};

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was tried, and is as it should be.
    Pass,
    /// It is not there, or deserves a thought; runs work.
    Warn,
    /// Runs that need it do not work.
    Fail,
}

impl Status {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was looked at, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// As `signing.key`.
    pub name: String,
    /// What came of it.
    pub status: Status,
    /// What was found, in one line.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The same for programs, by name.
    pub extras: Map<String, Value>,
}

impl Check {
    fn new(name: &str, status: Status, detail: impl Into<String>) -> Self {
        let detail = in_one_line(&detail.into());
        Self { name: name.to_owned(), status, detail, hint: None, extras: Map::new() }
    }

    pub(super) fn pass(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Pass, detail)
    }

    pub(super) fn warn(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Warn, detail)
    }

    pub(super) fn fail(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Fail, detail)
    }

    /// A probe that panicked: a bug, which is not hidden.
    pub(super) fn crashed(name: &str, said: &str) -> Self {
        Self::fail(name, format!("the check itself crashed: {said}")).with("crashed", true)
    }

    /// A failure by an error of a run, whose hint becomes that of the check.
    pub(super) fn failed_by(name: &str, error: &RunError) -> Self {
        let chain = error.chain();
        let (text, hint) = match chain.split_once("\n  hint: ") {
            // Causes stand below the hint.
            Some((text, rest)) => match rest.split_once("\n  because: ") {
                Some((hint, cause)) => (format!("{text}: {cause}"), Some(hint.to_owned())),
                None => (text.to_owned(), Some(rest.to_owned())),
            },
            None => (chain, None),
        };
        Self { hint: hint.map(|hint| in_one_line(&hint)), ..Self::fail(name, text) }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extras.insert(key.to_owned(), value.into());
        self
    }

    /// Whether the probe panicked.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.extras.get("crashed") == Some(&Value::Bool(true))
    }

    pub(super) fn to_json(&self) -> Value {
        let mut extras = self.extras.clone();
        if let Some(hint) = &self.hint {
            extras.insert("hint".to_owned(), json!(hint));
        }
        json!({
            "name": self.name,
            "status": self.status.name(),
            "detail": self.detail,
            "extras": extras,
        })
    }
}

/// A text without line ends and other control characters: names of files and answers of servers may
/// have some.
fn in_one_line(text: &str) -> String {
    let text = text.replace("\n  because: ", ": ");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_evidence::keys::KeyError;

    #[test]
    fn the_hint_of_an_error_is_that_of_its_check() {
        let error = RunError::from(KeyError::Permissions { path: "a.key".into(), mode: 0o644 });
        let check = Check::failed_by("signing.key", &error);
        assert_eq!(check.status, Status::Fail);
        let detail = "`a.key`: mode 0644 lets others use the private key; expected 0600";
        assert_eq!(
            (check.detail.as_str(), check.hint.as_deref()),
            (detail, Some("chmod 600 a.key"))
        );
        assert_eq!(check.to_json()["extras"]["hint"], "chmod 600 a.key");
    }

    #[test]
    fn a_detail_is_one_line_whatever_is_in_it() {
        let check = Check::warn("x", "a\n  because: b\u{1b}[31m\nc");
        assert_eq!(check.detail, "a: b?[31m; c");
    }
}
