//! The evidence of a quantization, written into the folder before it gets its name.

use super::{QuantizeRequest, Quantized, Written};
use crate::derived::evidence::Making;
use crate::derived::found::FoundModel;
use crate::dossier;
use crate::error::RunError;
use forgelm_artifact::hash::Hasher;
use forgelm_evidence::documents::quantization::QuantizationEvidence;
use forgelm_evidence::documents::record::{FileRecord, MergedModel, Record};
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::sign::{FileClaims, sign_file, signable};
use serde_json::json;
use std::path::Path;

/// What a quantization knows of itself when its files are written.
pub struct Quantizing<'a> {
    pub request: &'a QuantizeRequest,
    pub found: &'a FoundModel,
    /// Of the model.
    pub files: Vec<FileRecord>,
    pub making: Making<'a>,
}

impl Quantizing<'_> {
    /// Writes and signs the evidence in `dir`, which will be the output folder.
    pub fn write(&self, dir: &Path, written: Written) -> Result<Quantized, RunError> {
        let work = format!("quantize:{}", self.request.method);
        // Before the rest: the run's evidence binds it, and alone it goes where the file goes.
        if let Some(file) = &written.file {
            self.sign(&dir.join(file))?;
        }
        let begun = self.making.begin(dir, &self.request.model, work)?;
        let run_id = begun.run_id.clone();
        let Written { file, tensors } = written;
        let derived = self.making.derived(&begun, self.asked(), self.base());
        let evidence = QuantizationEvidence { derived, tensors };
        self.making.finish(begun, Record::Quantization(&evidence), "there is no key")?;
        let output_dir = self.request.output.clone();
        let model = file.map_or_else(|| output_dir.clone(), |name| output_dir.join(name));
        let (tensors, metrics) = (evidence.tensors, self.making.metrics.clone());
        Ok(Quantized { run_id, output_dir, model, tensors, metrics })
    }

    /// Signs the file that was made.
    fn sign(&self, path: &Path) -> Result<(), RunError> {
        let Some(key) = self.making.key else { return Ok(()) };
        let signed_at = self.making.env.clock.utc().to_string();
        let claims = FileClaims {
            kind: PredicateType::ModelExport,
            builder: &dossier::builder(),
            operator: &self.making.operator,
            signed_at: &signed_at,
        };
        let file = signable(path, claims.kind, false, &key.signer)?;
        sign_file(&file, &claims, &key.signer)?;
        Ok(())
    }

    fn base(&self) -> MergedModel {
        let mut files = self.files.clone();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let resolved = &self.found.resolved;
        MergedModel {
            path: self.request.model.clone(),
            kind: "base",
            weight: None,
            revision: dossier::revision(&resolved.revision, resolved.sha256.clone()),
            files,
        }
    }

    /// The digest of what was asked for, in the place of a config's.
    fn asked(&self) -> String {
        let asked = json!({
            "model": self.request.model,
            "revision": self.request.revision,
            "method": self.request.method,
            "options": self.making.plugin.options_json(),
        });
        let mut hasher = Hasher::new();
        hasher.update(asked.to_string().as_bytes());
        format!("sha256:{}", hasher.finish().as_str())
    }
}
