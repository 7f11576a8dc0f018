//! In-toto Statement v1: which files, by digest, and what is said about them.

use serde_json::{Value, json};

use crate::digest::unhex32;
use crate::keys::trust::Usage;
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::canonical_json;

/// `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Every predicate type begins with this.
pub const ATTESTATION_BASE: &str = "https://forgelm.dev/attestations/";

/// What a statement is about. A verifier always says which one it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PredicateType {
    /// S1: one compliance document.
    ComplianceManifest,
    /// S2: a run with all its files.
    TrainingRun,
    /// S4: the head of an audit log.
    AuditCheckpoint,
    /// S5: what a person decided on a staged model.
    ApprovalDecision,
    /// A shared library with plugins.
    PluginLibrary,
    /// S6: the report of a data audit.
    DataAudit,
    /// S7: a model in another format.
    ModelExport,
    /// S3: a model folder, in the words of OpenSSF Model Signing.
    ModelFolder,
    /// Files of a run that were removed on purpose.
    Erasure,
}

impl PredicateType {
    /// All types.
    pub const ALL: [Self; 9] = [
        Self::ComplianceManifest,
        Self::TrainingRun,
        Self::AuditCheckpoint,
        Self::ApprovalDecision,
        Self::PluginLibrary,
        Self::DataAudit,
        Self::ModelExport,
        Self::ModelFolder,
        Self::Erasure,
    ];

    /// The part after [`ATTESTATION_BASE`]; also the word of `--type`.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::ComplianceManifest => "compliance-manifest/v1",
            Self::TrainingRun => "training-run/v1",
            Self::AuditCheckpoint => "audit-checkpoint/v1",
            Self::ApprovalDecision => "approval-decision/v1",
            Self::PluginLibrary => "plugin-library/v1",
            Self::DataAudit => "data-audit/v1",
            Self::ModelExport => "model-export/v1",
            Self::ModelFolder => "model-folder/v1",
            Self::Erasure => "erasure/v1",
        }
    }

    /// The whole URI.
    #[must_use]
    pub fn uri(self) -> String {
        match self {
            // Another specification names this one.
            Self::ModelFolder => "https://model_signing/signature/v1.0".to_owned(),
            _ => format!("{ATTESTATION_BASE}{}", self.suffix()),
        }
    }

    /// Reads a suffix, also without its version, or a whole URI.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let suffix = text.strip_prefix(ATTESTATION_BASE).unwrap_or(text);
        let is_named = |t: &Self| {
            let short = t.suffix().strip_suffix("/v1");
            t.suffix() == suffix || short == Some(suffix) || t.uri() == text
        };
        Self::ALL.into_iter().find(is_named)
    }

    /// What a key must be trusted for to sign this.
    #[must_use]
    pub const fn usage(self) -> Usage {
        match self {
            Self::ComplianceManifest | Self::DataAudit => Usage::Manifest,
            Self::TrainingRun | Self::Erasure => Usage::Run,
            Self::AuditCheckpoint => Usage::Checkpoint,
            Self::ApprovalDecision => Usage::Approval,
            Self::PluginLibrary => Usage::Plugin,
            Self::ModelExport => Usage::Export,
            Self::ModelFolder => Usage::Model,
        }
    }
}

/// A file that a statement is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Path below the output folder, with `/`.
    pub name: String,
    /// 64 lowercase hex characters.
    pub sha256: String,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The files, sorted by name, each name once.
    pub subjects: Vec<Subject>,
    /// The predicate type's URI.
    pub predicate_type: String,
    /// What is said.
    pub predicate: Value,
}

/// Whether `name` is a relative path with `/` that stays below its folder.
#[must_use]
pub fn is_subject_name(name: &str) -> bool {
    let part_is_good = |part: &str| !matches!(part, "" | "." | "..");
    !name.contains(['\\', '\0']) && name.split('/').all(part_is_good)
}

impl Statement {
    /// A statement about `subjects`, which are sorted here.
    ///
    /// # Panics
    /// If a name is not relative, a name comes twice, or a digest is not 64 hex characters: the
    /// writer's bug.
    #[must_use]
    pub fn new(mut subjects: Vec<Subject>, kind: PredicateType, predicate: Value) -> Self {
        subjects.sort();
        for subject in &subjects {
            assert!(is_subject_name(&subject.name), "`{}` is not a subject name", subject.name);
            assert!(unhex32(subject.sha256.as_bytes()).is_some(), "not a SHA-256 digest");
        }
        let unique = subjects.windows(2).all(|pair| pair[0].name != pair[1].name);
        assert!(unique, "a subject name comes twice");
        Self { subjects, predicate_type: kind.uri(), predicate }
    }

    /// The canonical bytes (RFC 8785).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical_json(&json!({
            "_type": STATEMENT_TYPE,
            "subject": subjects_json(&self.subjects),
            "predicateType": self.predicate_type,
            "predicate": self.predicate,
        }))
    }

    /// Reads verified bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document = parse(bytes, DOCUMENT_LIMITS).map_err(|e| e.to_string())?;
        let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
        if text(&document, "_type").as_deref() != Some(STATEMENT_TYPE) {
            return Err(format!("`_type` is not `{STATEMENT_TYPE}`"));
        }
        let predicate_type =
            text(&document, "predicateType").ok_or("`predicateType` is missing")?;
        let entries = document.get("subject").and_then(Value::as_array);
        let entries =
            entries.filter(|list| !list.is_empty()).ok_or("`subject` is no list of files")?;
        let mut subjects: Vec<Subject> = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = text(entry, "name").filter(|name| is_subject_name(name));
            let name = name.ok_or("a subject's name is not a relative path")?;
            let digest = entry.get("digest").and_then(|digest| text(digest, "sha256"));
            let sha256 = digest.filter(|hex| unhex32(hex.as_bytes()).is_some());
            let sha256 = sha256.ok_or("a subject has no SHA-256 digest")?;
            if subjects.last().is_some_and(|before| before.name >= name) {
                return Err("the subjects are not sorted, or one comes twice".to_owned());
            }
            subjects.push(Subject { name, sha256 });
        }
        let predicate = document.get("predicate").cloned().unwrap_or(Value::Null);
        Ok(Self { subjects, predicate_type, predicate })
    }
}

/// The `subject` member.
pub(crate) fn subjects_json(subjects: &[Subject]) -> Value {
    let entry = |s: &Subject| json!({"name": s.name, "digest": {"sha256": s.sha256}});
    subjects.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{PredicateType, Statement, Subject, is_subject_name};
    use crate::digest::sha256_hex;

    fn subject(name: &str) -> Subject {
        Subject { name: name.to_owned(), sha256: sha256_hex(name.as_bytes()) }
    }

    #[test]
    fn statements_are_sorted_canonical_and_read_back() {
        let subjects = vec![subject("z"), subject("a/b"), subject("a")];
        let statement =
            Statement::new(subjects, PredicateType::TrainingRun, json!({"b": 1.0, "a": "é"}));
        let bytes = statement.to_bytes();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with(r#"{"_type":"https://in-toto.io/Statement/v1","predicate":{"a":"é","b":1},"predicateType":"https://forgelm.dev/attestations/training-run/v1","subject":[{"digest""#));
        let again = Statement::parse(&bytes).unwrap();
        assert_eq!(again.subjects, statement.subjects);
        assert_eq!(again.to_bytes(), bytes);
    }

    #[test]
    fn names_outside_the_folder_are_refused() {
        for name in ["a", "a/b.json", "ü/ñ", "..a", "a..b"] {
            assert!(is_subject_name(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0"] {
            assert!(!is_subject_name(name), "{name}");
        }
    }

    #[test]
    fn fault_099_unsorted_and_doubled_subjects_and_keys_are_refused() {
        let one = |name: &str| {
            format!(r#"{{"name":"{name}","digest":{{"sha256":"{}"}}}}"#, "0".repeat(64))
        };
        let with = |subjects: &[String]| {
            format!(
                r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"x","subject":[{}]}}"#,
                subjects.join(",")
            )
        };
        assert!(Statement::parse(with(&[one("a"), one("b")]).as_bytes()).is_ok());
        for bad in [
            with(&[one("b"), one("a")]),
            with(&[one("a"), one("a")]),
            with(&[]),
            with(&[one("../a")]),
            with(&[one("a")]).replace("Statement/v1", "Statement/v2"),
            with(&[one("a")]).replace(
                "\"predicateType\":\"x\"",
                "\"predicateType\":\"x\",\"predicateType\":\"y\"",
            ),
        ] {
            assert!(Statement::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        // Names that look alike are different names: Latin a and Cyrillic а.
        assert!(Statement::parse(with(&[one("a"), one("\u{430}")]).as_bytes()).is_ok());
    }

    #[test]
    fn types_go_there_and_back() {
        for kind in PredicateType::ALL {
            assert_eq!(PredicateType::parse(&kind.uri()), Some(kind));
            assert_eq!(PredicateType::parse(kind.suffix()), Some(kind));
        }
        assert_eq!(PredicateType::parse("training-run/v2"), None);
    }
}
