//! The documents of a run, all made from one [`evidence::Evidence`] (of a merge: one
//! [`record::MergeEvidence`]), so that no two can disagree.
//!
//! Everything here is a pure function: no file is read or written, no clock is asked.

mod card;
pub mod derived;
pub mod evidence;
pub(crate) mod predicate;
pub mod quantization;
pub mod record;
mod report;

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
