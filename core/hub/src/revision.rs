//! Revisions: what was asked for, what was found, and how sure that is.

use crate::HubError;
use serde::Serialize;

/// How a revision was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolutionSource {
    /// A local path: there is none.
    LocalPath,
    /// The cache knew it.
    Cache,
    /// It was asked for, and nobody could confirm it.
    PinnedUnverified,
    /// It was not asked for, and nobody knew it.
    Unresolved,
    /// The hub, or the package index, answered what is current.
    Resolved,
    /// It was asked for, and confirmed.
    PinnedResolved,
}

/// A model's revision for the evidence of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RevisionRecord {
    /// The part the model plays: `base_model`.
    pub role: String,
    /// Hub id, `pypi:NAME==VERSION`, or the path.
    pub repo_id: String,
    /// What the configuration asked for.
    pub revision_requested: Option<String>,
    /// What was confirmed: a commit (40 hex digits), or `sha256:` and 64 for a wheel.
    pub revision_resolved: Option<String>,
    /// What was given to the loader.
    pub revision_pinned: Option<String>,
    /// How it was found.
    pub resolution_source: ResolutionSource,
}

/// Whether this is a full commit id: 40 lowercase hex digits. Anything else may move.
#[must_use]
pub fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The rules for the text of a revision. It may have slashes (`refs/pr/1`) but leads nowhere: it
/// becomes a path in the cache and part of an address.
pub(crate) fn check(revision: &str) -> Result<(), HubError> {
    let why = if revision.is_empty() {
        "it is empty"
    } else if revision.len() > 255 {
        "it is longer than 255 bytes"
    } else if revision.starts_with('-') {
        "it begins with `-`"
    } else if revision.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it has white space or control characters"
    } else if revision.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "it leads out of its folder"
    } else {
        return Ok(());
    };
    Err(HubError::Revision { revision: revision.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::{check, is_commit};

    #[test]
    fn rules_for_the_text() {
        for good in ["main", "v1.0", "refs/pr/1", "sha256:00"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", " ", "a b", "-x", "a\u{7}", "../x", "/x", "a//b", &long] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(is_commit(&"0a".repeat(20)));
        assert!(!is_commit(&"0A".repeat(20)));
        assert!(!is_commit("main"));
    }
}
