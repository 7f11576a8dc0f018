//! What a quantization leaves for its documents.

use serde_json::{Value, json};

use super::derived::Derived;

/// A model in fewer bytes: what it was made from, how, and what that cost.
#[derive(Clone, Debug)]
pub struct QuantizationEvidence {
    /// What every model made from others has; there is no config.
    pub derived: Derived,
    /// What each tensor became, in the order of the file.
    pub tensors: Vec<QuantizedTensor>,
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
    Value::Object(evidence.derived.manifest("model", ("tensors", tensors)))
}
