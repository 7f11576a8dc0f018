//! What a quantization leaves for its documents.

use std::collections::BTreeMap;

use forgelm_artifact::UtcTime;
use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use super::evidence::Builder;
use super::record::{FileRecord, MergedModel};
use crate::audit::event::numbers;

/// A model in fewer bytes: what it was made from, how, and what that cost.
#[derive(Clone, Debug)]
pub struct QuantizationEvidence {
    /// `fg-` and 12 hex digits.
    pub run_id: String,
    /// Version of the program.
    pub forgelm_version: String,
    /// What built the program.
    pub builder: Builder,
    /// `sha256:` and 64 hex digits, of what was asked for: there is no config.
    pub config_hash: String,
    /// Who ran it.
    pub operator: String,
    /// When it began.
    pub started_at: UtcTime,
    /// When the model was written.
    pub finished_at: UtcTime,
    /// Name of the method.
    pub method: String,
    /// Its options, as it was built with them.
    pub options: Map<String, Value>,
    /// The model, as named.
    pub base: MergedModel,
    /// What each tensor became, in the order of the file.
    pub tensors: Vec<QuantizedTensor>,
    /// The files of the result, sorted by name; without the model card.
    pub outputs: Vec<FileRecord>,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Plugins that took part: name, file digest and more.
    pub plugins: Vec<Value>,
}

/// A tensor before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    /// Its name in the result.
    pub name: String,
    /// Its format there.
    pub format: String,
    /// Numbers.
    pub n_values: u64,
    /// Bytes that it had.
    pub bytes_before: u64,
    /// Bytes that it has.
    pub bytes_after: u64,
    /// Largest distance of a number from what it was.
    pub max_error: f64,
    /// Root of the mean square of that distance.
    pub rms_error: f64,
    /// Root of the mean square of the numbers.
    pub rms: f64,
}

impl QuantizedTensor {
    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "format": self.format,
            "values": self.n_values,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "max_error": self.max_error,
            "rms_error": self.rms_error,
            "rms": self.rms,
        })
    }
}

/// `quantize_manifest.json`: what was quantized, how, and what each tensor lost.
#[must_use]
pub fn quantize_manifest(evidence: &QuantizationEvidence) -> Value {
    let tensors: Vec<Value> = evidence.tensors.iter().map(QuantizedTensor::to_json).collect();
    let outputs: Vec<Value> = evidence.outputs.iter().map(FileRecord::to_json).collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "run_id": evidence.run_id,
        "forgelm_version": evidence.forgelm_version,
        "config_hash": evidence.config_hash,
        "operator": evidence.operator,
        "started_at": evidence.started_at.to_string(),
        "finished_at": evidence.finished_at.to_string(),
        "method": evidence.method,
        "options": evidence.options,
        "model": evidence.base.to_json(),
        "tensors": tensors,
        "outputs": outputs,
        "metrics": numbers(&evidence.metrics),
        "plugins": evidence.plugins,
    })
}
