//! The evidence of a merge, written into the folder before it gets its name.

use super::inputs::{Input, Inputs, Kind};
use super::{Merged, RunError};
use crate::derived::evidence::Making;
use crate::dossier;
use crate::plan::Plan;
use forgelm_config::{Merge, resolved_json};
use forgelm_evidence::documents::derived::Derived;
use forgelm_evidence::documents::evidence::RevisionRecord;
use forgelm_evidence::documents::record::{FileRecord, MergeEvidence, MergedModel, Record};
use std::path::Path;

/// What a merge knows of itself when its files are written.
pub struct Merging<'a> {
    pub plan: &'a Plan,
    pub section: &'a Merge,
    pub inputs: &'a Inputs,
    /// Of the base and of each input.
    pub files: &'a [Vec<FileRecord>],
    pub making: Making<'a>,
}

impl Merging<'_> {
    /// Writes and signs the evidence in `dir`, which will be `output_dir`.
    pub fn write(&self, dir: &Path, output_dir: &Path) -> Result<Merged, RunError> {
        let (config_hash, making) = (self.plan.config_hash.clone(), &self.making);
        let work = format!("merge:{}", making.plugin.name());
        let begun = making.begin(dir, &self.inputs.base_name, work)?;
        let run_id = begun.run_id.clone();
        let evidence = self.evidence(making.derived(&begun, config_hash.clone(), self.base()));
        let record = Record::Merge(&evidence);
        let unstamped = making.finish(begun, record, "signing.enabled is false")?;
        Ok(Merged {
            unstamped,
            run_id,
            config_hash,
            n_models: self.section.models.len(),
            output_dir: output_dir.to_owned(),
            metrics: making.metrics.clone(),
        })
    }

    fn base(&self) -> MergedModel {
        let base = &self.inputs.base.resolved;
        MergedModel {
            path: self.inputs.base_name.clone(),
            kind: "base",
            weight: None,
            revision: dossier::revision(&base.revision, base.sha256.clone()),
            files: self.files[0].clone(),
        }
    }

    fn evidence(&self, derived: Derived) -> MergeEvidence {
        let config = resolved_json(&self.plan.run);
        let section = |name: &str| config[name].as_object().cloned();
        let inputs = self.inputs.list.iter().zip(&self.files[1..]);
        MergeEvidence {
            derived,
            inputs: inputs.map(|(input, files)| merged_model(input, files)).collect(),
            compliance: section("compliance"),
            risk_assessment: section("risk_assessment"),
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
