//! What is known of the rows as a whole, beside them, signed.

use super::journal::Places;
use crate::dossier::{self, VERSION};
use crate::environment::Environment;
use crate::error::RunError;
use crate::plan::Plan;
use forgelm_artifact::UtcTime;
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::write;
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_evidence::sign::{FileClaims, sign_file, signable};
use forgelm_evidence::signature::default_signature_path;
use serde_json::{Value, json};
use std::path::Path;

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) n_total: usize,
    pub(super) n_rows: usize,
    pub(super) n_cut: usize,
}

/// The manifest of rows.
pub(super) struct Manifest<'a> {
    pub(super) plan: &'a Plan,
    pub(super) places: &'a Places,
    pub(super) identity: Value,
    pub(super) counts: Counts,
    pub(super) operator: String,
    pub(super) started_at: UtcTime,
}

impl Manifest<'_> {
    /// Writes and signs it: from here on the rows are complete, as far as they go.
    pub(super) fn write(&self, key: Option<&FoundKey>, env: &Environment) -> Result<(), RunError> {
        let Counts { n_total, n_rows, n_cut } = self.counts;
        let now = env.clock.utc().to_string();
        let file = |path: &Path| -> Result<Value, RunError> {
            // Where every prompt failed there is none.
            if !path.is_file() {
                return Ok(Value::Null);
            }
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            Ok(json!({"name": name, "sha256": sha256_file(path)?.as_str()}))
        };
        let manifest = json!({
            "schema_version": 1,
            "kind": "synthetic_data",
            "forgelm_version": VERSION,
            "operator": self.operator,
            "config_hash": self.plan.config_hash,
            "started_at": self.started_at.to_string(),
            "finished_at": now,
            "teacher": self.identity,
            "total_prompts": n_total,
            "successful": n_rows,
            "failed": n_total - n_rows,
            "cut_off": n_cut,
            "output": file(&self.places.rows)?,
            "provenance": file(&self.places.provenance)?,
        });
        let path = &self.places.manifest;
        write::atomic(path, format!("{manifest:#}\n").as_bytes())?;
        let Some(key) = key else { return Ok(()) };
        let kind = PredicateType::ComplianceManifest;
        let file = signable(path, kind, false, &key.signer)?;
        let builder = dossier::builder();
        let claims =
            FileClaims { kind, builder: &builder, operator: &self.operator, signed_at: &now };
        sign_file(&file, &claims, &key.signer)?;
        Ok(())
    }
}

/// Whether there is a manifest, with a signature where there is a key.
pub(super) fn is_there(places: &Places, key: Option<&FoundKey>) -> bool {
    let signature = default_signature_path(&places.manifest);
    places.manifest.is_file() && (key.is_none() || signature.is_file())
}

/// Removes a manifest of fewer rows, and its signature.
pub(super) fn remove(places: &Places) -> Result<(), RunError> {
    for path in [default_signature_path(&places.manifest), places.manifest.clone()] {
        if path.symlink_metadata().is_ok() {
            write::remove_file(&path)?;
        }
    }
    Ok(())
}
