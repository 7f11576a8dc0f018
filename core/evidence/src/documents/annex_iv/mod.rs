//! `annex_iv_metadata.json`: the technical documentation under Article 11.
//!
//! It has the members that the earlier Python implementation writes, so that its verifier accepts the
//! file, and beside them `points`: every sub-point of Annex IV under the Regulation's own numbers, each
//! with what is asked, what is answered, what shows it, and whether that is evidence, a statement, or
//! nothing. What is not known is null and named in `gaps`; no sentence stands in for it.
//!
//! Start reading at [`document`], then [`requirements`] and [`points`].

mod answers;
mod changes;
pub(crate) mod points;
mod requirements;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use answers::{Answers, OpenPoint, answer, is_placeholder, open_points};
pub use points::Status;
pub use requirements::{INSTRUCTIONS, InstructionItem, Need, REQUIREMENTS, Requirement};

use super::SCHEMA_VERSION;
use super::evidence::Evidence;
use super::record::FileRecord;
use super::report::{data_provenance, model_lineage, object, training_parameters};
use crate::audit::event::numbers;
use crate::dsse::SUFFIX;
use crate::manifest_hash::manifest_hash;

/// File name below the folder of documents.
pub const ANNEX_IV: &str = "annex_iv_metadata.json";

/// The members that must say something, in order.
pub const REQUIRED_FIELDS: [&str; 9] = [
    "system_identification",
    "intended_purpose",
    "system_components",
    "computational_resources",
    "data_governance",
    "technical_documentation",
    "monitoring_and_logging",
    "performance_metrics",
    "risk_management",
];

/// What is known of the other files of a run when this document is written.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// SHA-256 of files, by their path below the output folder.
    pub digests: BTreeMap<String, String>,
    /// The files of the model, named below the output folder.
    pub model_files: Vec<FileRecord>,
    /// The folder of the model below the output folder, if it has one.
    pub model_dir: Option<String>,
    /// The key that will sign.
    pub keyid: Option<String>,
}

/// What the config answers.
pub(crate) fn answers(evidence: &Evidence) -> Answers {
    Answers::new(
        evidence.compliance.as_ref(),
        evidence.risk_assessment.as_ref(),
        evidence.technical.governance_answers.as_ref(),
    )
}

/// The document; `None` without a `compliance` section.
#[must_use]
pub fn document(evidence: &Evidence, around: &Surroundings) -> Option<Value> {
    let section = evidence.compliance.as_ref()?;
    let given = answers(evidence);
    let text = |key: &str| section.get(key).cloned().unwrap_or(Value::Null);
    let identification = [
        "provider_name",
        "provider_contact",
        "system_name",
        "system_version",
        "intended_purpose",
        "risk_classification",
    ];
    let identification: Map<String, Value> =
        identification.iter().map(|key| ((*key).to_owned(), text(key))).collect();
    let monitoring = json!({"audit_log": crate::audit::LOG_FILE});
    let mut members = object(json!({
        "system_identification": identification,
        "intended_purpose": text("intended_purpose"),
        "system_components": {
            "model_lineage": model_lineage(evidence),
            "training_parameters": training_parameters(evidence),
        },
        "computational_resources": evidence.resource_usage,
        "data_governance": data_provenance(evidence),
        "technical_documentation": {
            "forgelm_version": evidence.forgelm_version,
            "generated_at": evidence.generated_at.to_string(),
            "known_limitations": text("known_limitations"),
        },
        "monitoring_and_logging": match &evidence.monitoring {
            Some(section) => Value::Object(section.clone()),
            None => monitoring,
        },
        "performance_metrics": numbers(&evidence.metrics),
        "risk_management": evidence.risk_assessment,
        "provider_metadata": super::report::identification(section),
        "schema_version": SCHEMA_VERSION,
        "config_hash": evidence.config_hash,
    }));
    if evidence.technical.is_standalone {
        members.insert("standalone".to_owned(), json!(true));
    } else {
        members.insert("run_id".to_owned(), json!(evidence.run_id));
        members.insert("outcome".to_owned(), json!(evidence.outcome.as_str()));
    }
    let points = points::points(evidence, &given, around, &members);
    members.insert("points".to_owned(), points);
    let is_open = |key: &&str| members.get(*key).and_then(answer).is_none();
    let gaps: Vec<&str> = REQUIRED_FIELDS.into_iter().filter(is_open).collect();
    members.insert("gaps".to_owned(), json!(gaps));
    let mut document = Value::Object(members);
    let mut metadata = object(json!({"manifest_hash": manifest_hash(&document)}));
    if let Some(keyid) = &around.keyid {
        let file = format!("{ANNEX_IV}{SUFFIX}");
        let pointer = json!({"scheme": "dsse", "file": file, "keyid": keyid});
        metadata.insert("manifest_signature".to_owned(), pointer);
    }
    document["metadata"] = Value::Object(metadata);
    Some(document)
}

#[cfg(test)]
pub(crate) mod tests;
