//! What is written and signed: the record of a training run, of a merge, or of a quantization.

use forgelm_artifact::json;
use serde_json::{Map, Value, json};

use super::MONITORING_BASELINE;
use super::annex_iv::{self, ANNEX_IV, Surroundings};
use super::card;
use super::croissant::{CROISSANT, croissant};
use super::cyclonedx::{MLBOM, mlbom};
use super::derived::Derived;
use super::evidence::{Builder, Evidence, RevisionRecord};
use super::facts::Governance;
use super::governance::GOVERNANCE_REPORT;
use super::gpai::{self, ANNEX_XI_FILE, DOWNSTREAM_FILE, SUMMARY_FILE};
use super::html::{REPORT, run_report};
use super::instructions::deployer_instructions;
use super::quantization::{QuantizationEvidence, quantize_manifest};
use super::report::{
    compliance_report, data_provenance, dataset_fingerprint, gates, identification, object,
    revision, risk_assessment, training_manifest, training_manifest_yaml,
};
use super::spdx::{SPDX, spdx};
use crate::bundle::COMPLIANCE_DIR;
use crate::digest::sha256_hex;

/// A finished piece of work with everything its documents are made from.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A training run.
    Training(&'a Evidence),
    /// A merge of models.
    Merge(&'a MergeEvidence),
    /// A model in fewer bytes.
    Quantization(&'a QuantizationEvidence),
}

/// What every signature says of who did what.
pub(crate) struct Identity<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) pipeline_run_id: Option<&'a str>,
    pub(crate) forgelm_version: &'a str,
    pub(crate) builder: &'a Builder,
    pub(crate) config_hash: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) compliance: Option<&'a Map<String, Value>>,
    pub(crate) risk_assessment: Option<&'a Map<String, Value>>,
}

/// What a merge leaves for its documents.
#[derive(Clone, Debug)]
pub struct MergeEvidence {
    /// What every model made from others has.
    pub derived: Derived,
    /// What was merged, in order.
    pub inputs: Vec<MergedModel>,
    /// The `compliance` section, if configured.
    pub compliance: Option<Map<String, Value>>,
    /// The `risk_assessment` section, if configured.
    pub risk_assessment: Option<Map<String, Value>>,
}

/// A model that went into a merge or a quantization.
#[derive(Clone, Debug)]
pub struct MergedModel {
    /// As configured.
    pub path: String,
    /// `base`, `model` or `adapter`.
    pub kind: &'static str,
    /// As configured; none for the base.
    pub weight: Option<f64>,
    /// Which revision of it.
    pub revision: RevisionRecord,
    /// The files that its weights were read from.
    pub files: Vec<FileRecord>,
}

/// A file by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// Name within its folder.
    pub name: String,
    /// 64 hex digits.
    pub sha256: String,
    /// Size.
    pub size_bytes: u64,
}

impl FileRecord {
    pub(crate) fn to_json(&self) -> Value {
        json!({"name": self.name, "sha256": self.sha256, "size_bytes": self.size_bytes})
    }
}

impl MergedModel {
    pub(crate) fn to_json(&self) -> Value {
        let mut members = object(json!({"path": self.path, "kind": self.kind}));
        members.extend(self.weight.map(|weight| ("weight".to_owned(), json!(weight))));
        members.insert("revision".to_owned(), revision(&self.revision));
        let files: Vec<Value> = self.files.iter().map(FileRecord::to_json).collect();
        members.insert("files".to_owned(), Value::Array(files));
        Value::Object(members)
    }
}

/// `merge_manifest.json`: what was merged, how, and what came of it, by digest.
#[must_use]
pub fn merge_manifest(evidence: &MergeEvidence) -> Value {
    let models: Vec<Value> = evidence.inputs.iter().map(MergedModel::to_json).collect();
    let mut manifest = evidence.derived.manifest("base", ("models", models));
    let compliance = evidence.compliance.as_ref().map(identification);
    let sections = [("annex_iv", &compliance), ("risk_assessment", &evidence.risk_assessment)];
    for (key, section) in sections {
        if let Some(section) = section {
            manifest.insert(key.to_owned(), Value::Object(section.clone()));
        }
    }
    Value::Object(manifest)
}

/// A document by name; none where this record has not.
pub(crate) type Document = (&'static str, Option<Vec<u8>>);

/// The documents of a training run. The one on Annex IV names the others by content, and comes last.
pub(crate) fn training_documents(evidence: &Evidence, around: &Surroundings) -> Vec<Document> {
    let json = |value: Value| Some(json::pretty(&value).into_bytes());
    let governance = match &evidence.technical.governance {
        Governance::Report { document, .. } => Some(document.clone()),
        Governance::NotDue | Governance::Failed { .. } => None,
    };
    let mut documents = vec![
        ("config.json", json(evidence.config.clone())),
        ("compliance_report.json", json(compliance_report(evidence))),
        ("training_manifest.yaml", Some(training_manifest_yaml(evidence).into_bytes())),
        ("training_manifest.json", json(training_manifest(evidence))),
        ("data_provenance.json", json(data_provenance(evidence))),
        ("risk_assessment.json", risk_assessment(evidence).and_then(json)),
        (GOVERNANCE_REPORT, governance.and_then(json)),
        (MONITORING_BASELINE, evidence.monitoring_baseline.clone().and_then(json)),
        (MLBOM, mlbom(evidence, around).and_then(json)),
        (SPDX, spdx(evidence, around).and_then(json)),
        (CROISSANT, croissant(evidence).and_then(json)),
        (ANNEX_XI_FILE, gpai::annex_xi(evidence).map(String::into_bytes)),
        (DOWNSTREAM_FILE, gpai::downstream(evidence).map(String::into_bytes)),
        (SUMMARY_FILE, gpai::summary(evidence).map(String::into_bytes)),
        (REPORT, run_report(evidence, around).map(String::into_bytes)),
    ];
    let mut around = around.clone();
    for (name, bytes) in &documents {
        let digest = bytes.as_ref().map(|bytes| sha256_hex(bytes));
        around.digests.extend(digest.map(|digest| (format!("{COMPLIANCE_DIR}/{name}"), digest)));
    }
    documents.push((ANNEX_IV, annex_iv::document(evidence, &around).and_then(json)));
    documents
}

impl Record<'_> {
    pub(crate) fn identity(&self) -> Identity<'_> {
        match self {
            Self::Training(evidence) => Identity {
                run_id: &evidence.run_id,
                pipeline_run_id: evidence.pipeline_run_id.as_deref(),
                forgelm_version: &evidence.forgelm_version,
                builder: &evidence.builder,
                config_hash: &evidence.config_hash,
                operator: &evidence.operator,
                compliance: evidence.compliance.as_ref(),
                risk_assessment: evidence.risk_assessment.as_ref(),
            },
            Self::Merge(evidence) => Identity {
                compliance: evidence.compliance.as_ref(),
                risk_assessment: evidence.risk_assessment.as_ref(),
                ..evidence.derived.identity()
            },
            Self::Quantization(evidence) => evidence.derived.identity(),
        }
    }

    /// Every document that a run can have, by name below the folder of documents; none where this
    /// one has not. `around` is what else the folder has.
    pub(crate) fn documents(&self, around: &Surroundings) -> Vec<Document> {
        let json = |value: Value| Some(json::pretty(&value).into_bytes());
        match self {
            Self::Training(evidence) => training_documents(evidence, around),
            Self::Merge(evidence) => vec![("merge_manifest.json", json(merge_manifest(evidence)))],
            Self::Quantization(evidence) => {
                vec![("quantize_manifest.json", json(quantize_manifest(evidence)))]
            }
        }
    }

    /// The instructions for use, of a model that was trained.
    pub(crate) fn instructions(&self, shown_model: &str) -> Option<String> {
        match self {
            Self::Training(evidence) => Some(deployer_instructions(evidence, shown_model)),
            Self::Merge(_) | Self::Quantization(_) => None,
        }
    }

    /// The governance report, where one is due.
    pub(crate) fn governance(&self) -> &Governance {
        match self {
            Self::Training(evidence) => &evidence.technical.governance,
            Self::Merge(_) | Self::Quantization(_) => &Governance::NotDue,
        }
    }

    /// The model card.
    pub(crate) fn model_card(&self) -> String {
        match self {
            Self::Training(evidence) => card::model_card(evidence),
            Self::Merge(evidence) => card::merge_card(evidence),
            Self::Quantization(evidence) => card::quantization_card(evidence),
        }
    }

    /// What the attestation says beside who did it and which files there are.
    pub(crate) fn claims(&self) -> Map<String, Value> {
        match self {
            Self::Training(evidence) => {
                let provenance = &evidence.data_provenance;
                let datasets = std::iter::once(&provenance.fingerprint)
                    .chain(provenance.extra_datasets.iter().map(|(_, print)| print));
                let datasets: Vec<Value> = datasets.map(dataset_fingerprint).collect();
                object(json!({
                    "outcome": evidence.outcome.as_str(),
                    "gates": gates(evidence),
                    "base_model": revision(&evidence.model_lineage.base_model_revision),
                    "dataset": datasets,
                }))
            }
            Self::Merge(evidence) => object(json!({
                "outcome": "merged",
                "gates": [],
                "base_model": revision(&evidence.derived.base.revision),
                "merge": {
                    "method": evidence.derived.method,
                    "options": evidence.derived.options,
                    "models": evidence.inputs.iter().map(MergedModel::to_json).collect::<Vec<_>>(),
                },
            })),
            Self::Quantization(evidence) => object(json!({
                "outcome": "quantized",
                "gates": [],
                "base_model": revision(&evidence.derived.base.revision),
                "quantization": {"method": evidence.derived.method, "options": evidence.derived.options},
            })),
        }
    }
}
