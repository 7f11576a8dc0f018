//! The evidence of a model that was made from others without training, written into its folder before
//! that gets its name.

use super::found::records;
use crate::dossier::{self, VERSION};
use crate::environment::Environment;
use crate::error::RunError;
use crate::outbound::TimeStamps;
use crate::plugins::Used;
use forgelm_artifact::UtcTime;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::bundle::write::{BundleRequest, ModelPlace, write_bundle};
use forgelm_evidence::documents::derived::Derived;
use forgelm_evidence::documents::record::{FileRecord, MergedModel, Record};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_evidence::timestamp::attach::Unstamped;
use std::collections::BTreeMap;
use std::path::Path;

/// Who makes it, by which method, and what was measured.
pub struct Making<'a> {
    pub env: &'a Environment,
    pub key: Option<&'a FoundKey>,
    /// Who is asked for time stamps, if anybody is.
    pub stamps: Option<&'a TimeStamps>,
    pub operator: String,
    pub started_at: UtcTime,
    pub metrics: BTreeMap<String, f64>,
    /// The method.
    pub plugin: Used,
}

/// Evidence that has begun: the log is open, and what lies in the folder is known.
pub struct Begun<'a> {
    dir: &'a Path,
    pub run_id: String,
    outputs: Vec<FileRecord>,
    audit: AuditLog,
}

impl Making<'_> {
    /// Opens a log in `dir` with its first entries; `work` is what is done to the model.
    pub fn begin<'d>(
        &self,
        dir: &'d Path,
        model: &str,
        work: String,
    ) -> Result<Begun<'d>, RunError> {
        let (env, run_id) = (self.env, self.env.run_id());
        // Before the log is there, which is no part of the model.
        let outputs = records(dir)?;
        let identity = AuditIdentity {
            run_id: run_id.clone(),
            operator: self.operator.clone(),
            secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: env.allow_audit_reroot,
        };
        let mut audit = AuditLog::open(dir, identity, env.clock.clone())?;
        audit.append(&dossier::key_event(self.key))?;
        let model = model.to_owned();
        audit.append(&AuditEvent::PipelineInitialized { model, trainer_type: work })?;
        Ok(Begun { dir, run_id, outputs, audit })
    }

    /// What documents are made from; `config_hash` is the digest of what was asked for.
    pub fn derived(&self, begun: &Begun<'_>, config_hash: String, base: MergedModel) -> Derived {
        Derived {
            run_id: begun.run_id.clone(),
            forgelm_version: VERSION.to_owned(),
            builder: dossier::builder(),
            config_hash,
            operator: self.operator.clone(),
            started_at: self.started_at,
            finished_at: self.env.clock.utc(),
            method: self.plugin.name().to_owned(),
            options: self.plugin.options_json(),
            base,
            outputs: begun.outputs.clone(),
            metrics: self.metrics.clone(),
            plugins: vec![self.plugin.to_json()],
        }
    }

    /// Writes and signs everything; `no_key` is why there may be no key. What got no time stamp.
    pub fn finish(
        &self,
        begun: Begun<'_>,
        record: Record<'_>,
        no_key: &'static str,
    ) -> Result<Vec<Unstamped>, RunError> {
        let Begun { dir, outputs, mut audit, .. } = begun;
        let files: Vec<String> = outputs.into_iter().map(|file| file.name).collect();
        let completed =
            AuditEvent::PipelineCompleted { success: true, metrics_summary: self.metrics.clone() };
        let request = BundleRequest {
            out_dir: dir,
            model: ModelPlace::Root { files: &files },
            extra_files: &[],
            record,
            model_key: None,
            stamping: self.stamps.map(TimeStamps::stamping),
            signer: self.key.map(|found| found.signer.as_ref()).ok_or(no_key),
            final_events: &[completed],
        };
        let bundle = write_bundle(&request, &mut audit, self.env.clock.as_ref())?;
        Ok(bundle.unstamped)
    }
}
