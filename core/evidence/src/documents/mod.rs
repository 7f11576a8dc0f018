//! The documents of a run, all made from one [`evidence::Evidence`] (of a merge: one
//! [`record::MergeEvidence`]), so that no two can disagree.
//!
//! Everything here is a pure function: no file is read or written, no clock is asked.

pub mod annex_iv;
mod card;
pub mod course;
mod croissant;
mod cyclonedx;
pub mod derived;
pub mod evidence;
pub mod facts;
pub mod governance;
mod gpai;
mod html;
mod instructions;
mod inventory;
mod markdown;
pub(crate) mod predicate;
pub mod quantization;
pub mod record;
mod redact;
pub(crate) mod report;
mod spdx;

pub use html::{PIPELINE_REPORT, REPORT, pipeline_report};
pub use instructions::{INSTRUCTIONS_FILE, deployer_instructions};
pub use redact::shown_config;

use annex_iv::Surroundings;

pub use card::{merge_card, model_card, quantization_card};
pub use quantization::quantize_manifest;
pub use record::merge_manifest;
pub use report::{
    compliance_report, data_provenance, risk_assessment, training_manifest, training_manifest_yaml,
};

/// The document of the losses that later ones are compared with.
pub const MONITORING_BASELINE: &str = "monitoring_baseline.json";

/// Schema version in documents that carry one.
pub const SCHEMA_VERSION: u64 = 1;

/// The documents of a config that was not run, by name: each says that it is `standalone`.
///
/// # Panics
/// If the evidence is that of a run: a bug in the caller.
#[must_use]
pub fn standalone_documents(evidence: &evidence::Evidence) -> Vec<(&'static str, Vec<u8>)> {
    assert!(evidence.technical.is_standalone, "documents of a run are written with its bundle");
    let documents = record::training_documents(evidence, &Surroundings::default());
    documents.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))).collect()
}
