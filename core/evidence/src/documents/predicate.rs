//! The predicates of statements, from the same evidence as the documents.

use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use super::evidence::Evidence;
use super::report::{dataset_fingerprint, gates, revision};
use crate::BUILDER_NAME;
use crate::checkpoint::Checkpoint;
use crate::keys::RunSigner;

/// The members that every predicate has.
pub(crate) fn common_predicate(
    evidence: &Evidence,
    signer: &RunSigner,
    signed_at: &str,
) -> Map<String, Value> {
    let tier = |section: &Option<Map<String, Value>>, key: &str| {
        section.as_ref().and_then(|s| s.get(key)).cloned().unwrap_or(Value::Null)
    };
    let members = json!({
        "run_id": evidence.run_id,
        "pipeline_run_id": evidence.pipeline_run_id,
        "forgelm_version": evidence.forgelm_version,
        "builder": {
            "name": BUILDER_NAME,
            "version": evidence.builder.version,
            "commit": evidence.builder.commit,
            "target": evidence.builder.target,
        },
        "config_hash": evidence.config_hash,
        "operator": evidence.operator,
        "signed_at": signed_at,
        "signer": {
            "keyid": signer.key.id().as_str(),
            "key_origin": signer.origin.as_str(),
            "label": signer.label,
        },
        "risk": {
            "compliance": tier(&evidence.compliance, "risk_classification"),
            "risk_assessment": tier(&evidence.risk_assessment, "risk_category"),
        },
    });
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// The predicate of one document (S1).
pub(crate) fn manifest_predicate(
    evidence: &Evidence,
    signer: &RunSigner,
    signed_at: &str,
    kind: &str,
) -> Value {
    let mut members = common_predicate(evidence, signer, signed_at);
    members.insert("kind".to_owned(), json!(kind));
    members.insert("schema_version".to_owned(), json!(SCHEMA_VERSION));
    Value::Object(members)
}

/// What the run's attestation says besides its subjects.
pub(crate) struct RunClaims<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// SHA-256 over the raw digests of the model folder's files, in the order of their names.
    pub(crate) model_root_digest: Option<String>,
    pub(crate) model_files: usize,
    /// Folders of which every file is a subject.
    pub(crate) scope: &'a [String],
}

/// The predicate of the run (S2).
pub(crate) fn run_predicate(
    evidence: &Evidence,
    signer: &RunSigner,
    signed_at: &str,
    claims: &RunClaims<'_>,
) -> Value {
    let mut members = common_predicate(evidence, signer, signed_at);
    let datasets = std::iter::once(&evidence.data_provenance.fingerprint)
        .chain(evidence.data_provenance.extra_datasets.iter().map(|(_, print)| print));
    let datasets: Vec<Value> = datasets.map(dataset_fingerprint).collect();
    let model = claims
        .model_root_digest
        .as_ref()
        .map(|root| json!({"root_digest": root, "files": claims.model_files}));
    let more = [
        ("outcome", json!(evidence.outcome.as_str())),
        ("gates", gates(evidence)),
        ("base_model", revision(&evidence.model_lineage.base_model_revision)),
        ("dataset", Value::Array(datasets)),
        ("audit_checkpoint", claims.checkpoint.to_json()),
        ("model", json!(model)),
        ("scope", json!(claims.scope)),
    ];
    members.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    Value::Object(members)
}
