//! The predicates of statements, from the same evidence as the documents.

use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use super::record::{Identity, Record};
use crate::checkpoint::Checkpoint;
use crate::keys::RunSigner;

/// The members that every predicate has.
pub(crate) fn common_predicate(
    identity: &Identity<'_>,
    signer: &RunSigner,
    signed_at: &str,
) -> Map<String, Value> {
    let tier = |section: Option<&Map<String, Value>>, key: &str| {
        section.and_then(|s| s.get(key)).cloned().unwrap_or(Value::Null)
    };
    let members = json!({
        "run_id": identity.run_id,
        "pipeline_run_id": identity.pipeline_run_id,
        "forgelm_version": identity.forgelm_version,
        "builder": identity.builder.to_json(),
        "config_hash": identity.config_hash,
        "operator": identity.operator,
        "signed_at": signed_at,
        "signer": signer.to_json(),
        "risk": {
            "compliance": tier(identity.compliance, "risk_classification"),
            "risk_assessment": tier(identity.risk_assessment, "risk_category"),
        },
    });
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// The predicate of one document (S1).
pub(crate) fn manifest_predicate(
    record: &Record<'_>,
    signer: &RunSigner,
    signed_at: &str,
    kind: &str,
) -> Value {
    let mut members = common_predicate(&record.identity(), signer, signed_at);
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
    record: &Record<'_>,
    signer: &RunSigner,
    signed_at: &str,
    claims: &RunClaims<'_>,
) -> Value {
    let mut members = common_predicate(&record.identity(), signer, signed_at);
    members.extend(record.claims());
    let model = claims
        .model_root_digest
        .as_ref()
        .map(|root| json!({"root_digest": root, "files": claims.model_files}));
    let more = [
        ("audit_checkpoint", claims.checkpoint.to_json()),
        ("model", json!(model)),
        ("scope", json!(claims.scope)),
    ];
    members.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    Value::Object(members)
}
