//! The evidence of a quantization, written into the folder before it gets its name.

use super::{QuantizeRequest, Quantized, Written};
use crate::derived::evidence::{By, open_audit};
use crate::derived::found::{FoundModel, records};
use crate::dossier::{self, VERSION};
use crate::environment::Environment;
use crate::error::RunError;
use crate::plugins::Used;
use forgelm_artifact::UtcTime;
use forgelm_artifact::hash::Hasher;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::bundle::write::{BundleRequest, ModelPlace, write_bundle};
use forgelm_evidence::documents::quantization::QuantizationEvidence;
use forgelm_evidence::documents::record::{FileRecord, MergedModel, Record};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_sdk::OptionValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What a quantization knows of itself when its files are written.
pub struct Quantizing<'a> {
    pub request: &'a QuantizeRequest,
    pub env: &'a Environment,
    pub options: &'a [(&'a str, OptionValue)],
    pub found: &'a FoundModel,
    /// Of the model.
    pub files: Vec<FileRecord>,
    pub key: Option<&'a FoundKey>,
    pub operator: String,
    pub started_at: UtcTime,
    pub metrics: BTreeMap<String, f64>,
    /// The method.
    pub plugin: Used,
}

impl Quantizing<'_> {
    /// Writes and signs the evidence in `dir`, which will be the output folder.
    pub fn write(&self, dir: &Path, written: Written) -> Result<Quantized, RunError> {
        let run_id = self.env.run_id();
        // Before the log is there, which is no part of the model.
        let outputs = records(dir)?;
        let by = By { env: self.env, operator: &self.operator, key: self.key };
        let work = format!("quantize:{}", self.request.method);
        let mut audit = open_audit(dir, &run_id, &by, &self.request.model, work)?;
        let files: Vec<String> = outputs.iter().map(|file| file.name.clone()).collect();
        let Written { file, tensors } = written;
        let evidence = self.evidence(&run_id, outputs, &tensors);
        let completed =
            AuditEvent::PipelineCompleted { success: true, metrics_summary: self.metrics.clone() };
        let request = BundleRequest {
            out_dir: dir,
            model: ModelPlace::Root { files: &files },
            extra_files: &[],
            record: Record::Quantization(&evidence),
            signer: self.key.map(|found| &found.signer).ok_or("there is no key"),
            final_events: &[completed],
        };
        write_bundle(&request, &mut audit, self.env.clock.as_ref())?;
        let output_dir = self.request.output.clone();
        let model = file.map_or_else(|| output_dir.clone(), |name| output_dir.join(name));
        Ok(Quantized { run_id, output_dir, model, tensors, metrics: self.metrics.clone() })
    }

    fn options(&self) -> Map<String, Value> {
        self.options.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect()
    }

    fn evidence(
        &self,
        run_id: &str,
        outputs: Vec<FileRecord>,
        tensors: &[forgelm_evidence::documents::quantization::QuantizedTensor],
    ) -> QuantizationEvidence {
        let mut files = self.files.clone();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let resolved = &self.found.resolved;
        QuantizationEvidence {
            run_id: run_id.to_owned(),
            forgelm_version: VERSION.to_owned(),
            builder: dossier::builder(),
            config_hash: self.asked(),
            operator: self.operator.clone(),
            started_at: self.started_at,
            finished_at: self.env.clock.utc(),
            method: self.request.method.clone(),
            options: self.options(),
            base: MergedModel {
                path: self.request.model.clone(),
                kind: "base",
                weight: None,
                revision: dossier::revision(&resolved.revision, resolved.sha256.clone()),
                files,
            },
            tensors: tensors.to_vec(),
            outputs,
            metrics: self.metrics.clone(),
            plugins: vec![self.plugin.to_json()],
        }
    }

    /// The digest of what was asked for, in the place of a config's.
    fn asked(&self) -> String {
        let asked = json!({
            "model": self.request.model,
            "revision": self.request.revision,
            "method": self.request.method,
            "options": self.options(),
        });
        let mut hasher = Hasher::new();
        hasher.update(asked.to_string().as_bytes());
        format!("sha256:{}", hasher.finish().as_str())
    }
}
