//! Writing the manifest of a pipeline, its page for people, and signing it and the head of its log.
//!
//! The envelope of the manifest before goes first: from then until the new one is there the manifest
//! is unsigned, never signed as something it is not. The head of the log is signed where the pipeline
//! stops, since a log that grows is vouched for as far as its last signed head alone.

use std::path::Path;

use forgelm_artifact::UtcTime;
use forgelm_artifact::json;
use forgelm_artifact::write;
use serde_json::{Map, Value, json};

use super::PIPELINE_MANIFEST;
use super::state::PipelineState;
use crate::bundle::write::BundleError;
use crate::bundle::{COMPLIANCE_DIR, PUBLIC_KEY};
use crate::checkpoint::{CHECKPOINT_FILE, write_checkpoint_of};
use crate::digest::sha256_hex;
use crate::documents::evidence::Builder;
use crate::documents::predicate::common_predicate;
use crate::documents::record::Identity;
use crate::documents::report::identification;
use crate::documents::{PIPELINE_REPORT, SCHEMA_VERSION, pipeline_report};
use crate::dsse::statement::{PredicateType, Statement, Subject};
use crate::dsse::{Envelope, SUFFIX};
use crate::keys::RunSigner;
use crate::manifest_hash::manifest_hash;
use crate::timestamp::attach::{Kind, Stamping, Unstamped};

/// What a manifest says beside the state.
pub struct ManifestFacts<'a> {
    /// Who runs the pipeline.
    pub operator: &'a str,
    /// What built the program.
    pub builder: &'a Builder,
    /// The `compliance` section, if configured.
    pub compliance: Option<&'a Map<String, Value>>,
    /// The `risk_assessment` section, if configured.
    pub risk_assessment: Option<&'a Map<String, Value>>,
    /// The key; none where nothing is signed.
    pub signer: Option<&'a RunSigner>,
}

impl ManifestFacts<'_> {
    fn identity<'a>(&'a self, state: &'a PipelineState) -> Identity<'a> {
        Identity {
            run_id: &state.pipeline_run_id,
            pipeline_run_id: Some(&state.pipeline_run_id),
            forgelm_version: &state.forgelm_version,
            builder: self.builder,
            config_hash: &state.pipeline_config_hash,
            operator: self.operator,
            compliance: self.compliance,
            risk_assessment: self.risk_assessment,
        }
    }

    /// The manifest of a state.
    #[must_use]
    pub fn manifest(&self, state: &PipelineState, now: UtcTime) -> Value {
        let mut manifest = Map::new();
        manifest.insert("forgelm_version".to_owned(), json!(state.forgelm_version));
        manifest.insert("generated_at".to_owned(), json!(now.to_text_seconds()));
        if let Value::Object(members) = state.to_json() {
            let members = members.into_iter().filter(|(key, _)| key != "forgelm_version");
            manifest.extend(members);
        }
        let annex = self.compliance.map(identification).filter(|members| !members.is_empty());
        manifest.extend(annex.map(|members| ("annex_iv".to_owned(), Value::Object(members))));
        let risk = self.risk_assessment.cloned();
        manifest.extend(risk.map(|members| ("risk_assessment".to_owned(), Value::Object(members))));
        let mut manifest = Value::Object(manifest);
        manifest["metadata"] = json!({});
        manifest["metadata"]["manifest_hash"] = json!(manifest_hash(&manifest));
        if let Some(signer) = self.signer {
            let file = PIPELINE_MANIFEST.rsplit('/').next().unwrap_or_default();
            manifest["metadata"]["manifest_signature"] = json!({
                "scheme": "dsse",
                "file": format!("{file}{SUFFIX}"),
                "keyid": signer.key.id().as_str(),
            });
        }
        manifest
    }

    /// Writes the manifest of a state into the pipeline's folder, its page, and its signature.
    ///
    /// # Errors
    /// If the system refuses, or the key gives no signature.
    pub fn write(
        &self,
        dir: &Path,
        state: &PipelineState,
        now: UtcTime,
    ) -> Result<(), BundleError> {
        write::create_dir_all_durable(&dir.join(COMPLIANCE_DIR))?;
        let (path, envelope) =
            (dir.join(PIPELINE_MANIFEST), dir.join(format!("{PIPELINE_MANIFEST}{SUFFIX}")));
        let manifest = self.manifest(state, now);
        let text = json::pretty(&manifest);
        write::remove_file(&envelope)?;
        write::atomic(&path, text.as_bytes())?;
        let page = dir.join(COMPLIANCE_DIR).join(PIPELINE_REPORT);
        write::atomic(&page, pipeline_report(&manifest).as_bytes())?;
        let Some(signer) = self.signer else {
            return Ok(write::remove_file(&dir.join(PUBLIC_KEY))?);
        };
        let public = signer.key.public().to_pem();
        if std::fs::read(dir.join(PUBLIC_KEY)).ok().as_deref() != Some(public.as_bytes()) {
            write::atomic(&dir.join(PUBLIC_KEY), public.as_bytes())?;
        }
        let mut predicate = common_predicate(&self.identity(state), signer, &now.to_string());
        predicate.insert("kind".to_owned(), json!("pipeline_manifest"));
        predicate.insert("schema_version".to_owned(), json!(SCHEMA_VERSION));
        let subject =
            Subject { name: PIPELINE_MANIFEST.to_owned(), sha256: sha256_hex(text.as_bytes()) };
        let kind = PredicateType::ComplianceManifest;
        let statement = Statement::new(vec![subject], kind, Value::Object(predicate));
        let signed = Envelope::sign(statement.to_bytes(), &signer.key)?;
        Ok(write::atomic(&envelope, &signed.to_bytes())?)
    }

    /// Signs the head of the pipeline's log, and asks for time stamps over this signature and the
    /// manifest's, where somebody is to be asked; what got none.
    ///
    /// # Errors
    /// As [`ManifestFacts::write`]; and if the log does not verify.
    pub fn seal(
        &self,
        dir: &Path,
        state: &PipelineState,
        now: UtcTime,
        stamping: Option<&Stamping<'_>>,
    ) -> Result<Vec<Unstamped>, BundleError> {
        let Some(signer) = self.signer else { return Ok(Vec::new()) };
        write_checkpoint_of(dir, &self.identity(state), signer, &now.to_string())?;
        let mut unstamped = Vec::new();
        for file in [CHECKPOINT_FILE.to_owned(), format!("{PIPELINE_MANIFEST}{SUFFIX}")] {
            if let Some(stamping) = stamping {
                unstamped.extend(stamping.attach(dir, &file, Kind::Envelope)?);
            }
        }
        Ok(unstamped)
    }
}
