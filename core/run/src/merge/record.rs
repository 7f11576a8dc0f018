//! The evidence of a merge, written into the folder before it gets its name.

use super::inputs::{Input, Inputs, Kind};
use super::{Merged, RunError};
use crate::derived::evidence::{By, open_audit};
use crate::derived::found::records;
use crate::dossier::{self, VERSION};
use crate::environment::Environment;
use crate::plan::Plan;
use crate::plugins::Used;
use forgelm_artifact::UtcTime;
use forgelm_config::{Merge, resolved_json};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::bundle::write::{BundleRequest, ModelPlace, write_bundle};
use forgelm_evidence::documents::evidence::RevisionRecord;
use forgelm_evidence::documents::record::{FileRecord, MergeEvidence, MergedModel, Record};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_sdk::OptionValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What a merge knows of itself when its files are written.
pub struct Merging<'a> {
    pub plan: &'a Plan,
    pub env: &'a Environment,
    pub section: &'a Merge,
    pub options: &'a [(&'static str, OptionValue)],
    pub inputs: &'a Inputs,
    /// Of the base and of each input.
    pub files: &'a [Vec<FileRecord>],
    pub key: Option<&'a FoundKey>,
    pub operator: String,
    pub started_at: UtcTime,
    pub metrics: BTreeMap<String, f64>,
    /// The method.
    pub plugin: Used,
}

impl Merging<'_> {
    /// Writes and signs the evidence in `dir`, which will be `output_dir`.
    pub fn write(&self, dir: &Path, output_dir: &Path) -> Result<Merged, RunError> {
        let run_id = self.env.run_id();
        // Before the log is there, which is no part of the model.
        let outputs = records(dir)?;
        let by = By { env: self.env, operator: &self.operator, key: self.key };
        let work = format!("merge:{}", self.section.method);
        let mut audit = open_audit(dir, &run_id, &by, &self.inputs.base_name, work)?;
        let files: Vec<String> = outputs.iter().map(|file| file.name.clone()).collect();
        let evidence = self.evidence(&run_id, outputs);
        let completed =
            AuditEvent::PipelineCompleted { success: true, metrics_summary: self.metrics.clone() };
        let request = BundleRequest {
            out_dir: dir,
            model: ModelPlace::Root { files: &files },
            extra_files: &[],
            record: Record::Merge(&evidence),
            signer: self.key.map(|found| &found.signer).ok_or("signing.enabled is false"),
            final_events: &[completed],
        };
        write_bundle(&request, &mut audit, self.env.clock.as_ref())?;
        Ok(Merged {
            run_id,
            config_hash: self.plan.config_hash.clone(),
            n_models: self.section.models.len(),
            output_dir: output_dir.to_owned(),
            metrics: self.metrics.clone(),
        })
    }

    fn evidence(&self, run_id: &str, outputs: Vec<FileRecord>) -> MergeEvidence {
        let config = resolved_json(&self.plan.run);
        let section = |name: &str| config[name].as_object().cloned();
        let base = &self.inputs.base.resolved;
        let inputs = self.inputs.list.iter().zip(&self.files[1..]);
        MergeEvidence {
            run_id: run_id.to_owned(),
            forgelm_version: VERSION.to_owned(),
            builder: dossier::builder(),
            config_hash: self.plan.config_hash.clone(),
            operator: self.operator.clone(),
            started_at: self.started_at,
            finished_at: self.env.clock.utc(),
            method: self.section.method.to_string(),
            options: options(self.options),
            base: MergedModel {
                path: self.inputs.base_name.clone(),
                kind: "base",
                weight: None,
                revision: dossier::revision(&base.revision, base.sha256.clone()),
                files: self.files[0].clone(),
            },
            inputs: inputs.map(|(input, files)| merged_model(input, files)).collect(),
            outputs,
            metrics: self.metrics.clone(),
            compliance: section("compliance"),
            risk_assessment: section("risk_assessment"),
            plugins: vec![self.plugin.to_json()],
        }
    }
}

fn merged_model(input: &Input, files: &[FileRecord]) -> MergedModel {
    let (kind, revision) = match &input.kind {
        Kind::Model(model) => {
            let resolved = &model.resolved;
            ("model", dossier::revision(&resolved.revision, resolved.sha256.clone()))
        }
        Kind::Adapter(_) => {
            let record = RevisionRecord {
                repo_id: input.path.clone(),
                resolution_source: "local_path".to_owned(),
                ..RevisionRecord::default()
            };
            ("adapter", record)
        }
    };
    MergedModel {
        path: input.path.clone(),
        kind,
        weight: Some(input.weight),
        revision,
        files: files.to_vec(),
    }
}

fn options(given: &[(&'static str, OptionValue)]) -> Map<String, Value> {
    given.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect()
}
