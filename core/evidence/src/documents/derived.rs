//! What a merge and a quantization leave alike for their documents.

use std::collections::BTreeMap;

use forgelm_artifact::UtcTime;
use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use super::evidence::Builder;
use super::record::{FileRecord, Identity, MergedModel};
use super::report::object;
use crate::audit::event::numbers;

/// A model that was made from others without training: what of, how, and what came of it.
#[derive(Clone, Debug)]
pub struct Derived {
    /// `fg-` and 12 hex digits.
    pub run_id: String,
    /// Version of the program.
    pub forgelm_version: String,
    /// What built the program.
    pub builder: Builder,
    /// `sha256:` and 64 hex digits, of the config as loaded, else of what was asked for.
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
    /// The base model, as named.
    pub base: MergedModel,
    /// The files of the result, sorted by name; without the model card.
    pub outputs: Vec<FileRecord>,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Plugins that took part: name, file digest and more.
    pub plugins: Vec<Value>,
}

impl Derived {
    /// The manifest: the base under `base`, and one member that only this kind of work has.
    pub(crate) fn manifest(&self, base: &str, own: (&str, Vec<Value>)) -> Map<String, Value> {
        let outputs: Vec<Value> = self.outputs.iter().map(FileRecord::to_json).collect();
        object(json!({
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "forgelm_version": self.forgelm_version,
            "config_hash": self.config_hash,
            "operator": self.operator,
            "started_at": self.started_at.to_string(),
            "finished_at": self.finished_at.to_string(),
            "method": self.method,
            "options": self.options,
            (base): self.base.to_json(),
            (own.0): own.1,
            "outputs": outputs,
            "metrics": numbers(&self.metrics),
            "plugins": self.plugins,
        }))
    }

    pub(crate) fn identity(&self) -> Identity<'_> {
        Identity {
            run_id: &self.run_id,
            pipeline_run_id: None,
            forgelm_version: &self.forgelm_version,
            builder: &self.builder,
            config_hash: &self.config_hash,
            operator: &self.operator,
            compliance: None,
            risk_assessment: None,
        }
    }
}
