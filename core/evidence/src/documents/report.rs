//! `compliance_report.json`, `training_manifest.yaml` and `.json`, `data_provenance.json`,
//! `risk_assessment.json`.

use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use super::evidence::{DataProvenance, DatasetFingerprint, Evidence, RevisionRecord};
use crate::audit::event::{number, numbers};
use crate::gate::Check;

/// The full manifest of a run.
#[must_use]
pub fn compliance_report(evidence: &Evidence) -> Value {
    let mut report = standalone_mark(evidence);
    report.extend(object(json!({
        "forgelm_version": evidence.forgelm_version,
        "generated_at": evidence.generated_at.to_string(),
        "config_hash": evidence.config_hash,
        "model_lineage": model_lineage(evidence),
        "training_parameters": training_parameters(evidence),
        "data_provenance": data_provenance(evidence),
        "evaluation_results": evaluation_results(evidence),
    })));
    let identification = evidence.compliance.as_ref().map(identification);
    let sections = [
        ("annex_iv", &identification),
        ("risk_assessment", &evidence.risk_assessment),
        ("monitoring", &evidence.monitoring),
        ("webhook_config", &evidence.webhook_config),
    ];
    for (key, section) in sections {
        if let Some(section) = section {
            report.insert(key.to_owned(), Value::Object(section.clone()));
        }
    }
    if evidence.technical.is_standalone {
        return Value::Object(report);
    }
    report.insert("run_id".to_owned(), json!(evidence.run_id));
    if let Some(usage) = &evidence.resource_usage {
        report.insert("resource_usage".to_owned(), Value::Object(usage.clone()));
    }
    report.insert("operator".to_owned(), json!(evidence.operator));
    report.insert("started_at".to_owned(), json!(evidence.started_at.to_string()));
    report.insert("finished_at".to_owned(), json!(evidence.finished_at.to_string()));
    report.insert("outcome".to_owned(), json!(evidence.outcome.as_str()));
    report.insert("gates".to_owned(), gates(evidence));
    report.insert("plugins".to_owned(), json!(evidence.plugins));
    Value::Object(report)
}

/// `standalone: true` for documents that were made from a config alone.
fn standalone_mark(evidence: &Evidence) -> Map<String, Value> {
    let is_standalone = evidence.technical.is_standalone;
    is_standalone.then(|| ("standalone".to_owned(), json!(true))).into_iter().collect()
}

/// The members of the `compliance` section that say who provides what.
pub(super) fn identification(section: &Map<String, Value>) -> Map<String, Value> {
    let keys = [
        "provider_name",
        "provider_contact",
        "system_name",
        "intended_purpose",
        "known_limitations",
        "system_version",
        "risk_classification",
    ];
    let of = |key: &&str| Some(((*key).to_owned(), section.get(*key)?.clone()));
    keys.iter().filter_map(of).collect()
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

pub(super) fn gates(evidence: &Evidence) -> Value {
    let row = |gate: &super::evidence::Gate| {
        let checks: Vec<Value> = gate.checks.iter().map(Check::to_json).collect();
        json!({"gate": gate.gate, "passed": gate.passed, "reason": gate.reason, "checks": checks})
    };
    evidence.gates.iter().map(row).collect()
}

pub(super) fn revision(record: &RevisionRecord) -> Value {
    let mut members = object(json!({
        "repo_id": record.repo_id,
        "revision_requested": record.revision_requested,
        "revision_resolved": record.revision_resolved,
        "resolution_source": record.resolution_source,
        "revision_pinned": record.revision_pinned,
    }));
    if let Some(sha256) = &record.sha256 {
        members.insert("sha256".to_owned(), json!(sha256));
    }
    Value::Object(members)
}

pub(super) fn model_lineage(evidence: &Evidence) -> Value {
    let lineage = &evidence.model_lineage;
    let mut components: Vec<_> = lineage.component_revisions.iter().collect();
    components.sort_by_key(|c| (c.role.as_str(), c.revision.repo_id.as_str()));
    let components: Vec<Value> = components
        .into_iter()
        .map(|component| {
            let mut members = object(json!({"role": component.role}));
            members.extend(object(revision(&component.revision)));
            Value::Object(members)
        })
        .collect();
    json!({
        "base_model": lineage.base_model,
        "base_model_revision": revision(&lineage.base_model_revision),
        "component_revisions": components,
        "backend": lineage.backend,
        "adapter_method": lineage.adapter_method,
        "quantization": lineage.quantization,
        "trust_remote_code": lineage.trust_remote_code,
    })
}

pub(super) fn training_parameters(evidence: &Evidence) -> Value {
    let p = &evidence.training_parameters;
    let mut members = object(json!({
        "trainer_type": p.trainer_type,
        "epochs": whole_or_number(p.epochs),
        "batch_size": p.batch_size,
        "gradient_accumulation_steps": p.gradient_accumulation_steps,
        "learning_rate": number(p.learning_rate),
        "max_length": p.max_length,
        "lora_r": p.lora_r,
        "lora_alpha": whole_or_number(p.lora_alpha),
        "lora_dropout": number(p.lora_dropout),
        "dora": p.dora,
        "target_modules": p.target_modules,
        "seed": p.seed,
    }));
    members.extend(p.more.clone());
    Value::Object(members)
}

/// `3`, not `3.0`, for a number that people write without a fraction.
fn whole_or_number(value: f64) -> Value {
    let text = value.to_string();
    text.parse::<i64>().map_or_else(|_| number(value), |whole| json!(whole))
}

fn evaluation_results(evidence: &Evidence) -> Value {
    let mut members = Map::new();
    members.insert("metrics".to_owned(), Value::Object(numbers(&evidence.metrics)));
    members.extend(evidence.evaluations.clone());
    Value::Object(members)
}

/// `data_provenance.json`.
#[must_use]
pub fn data_provenance(evidence: &Evidence) -> Value {
    let DataProvenance { primary_dataset, fingerprint, shuffle, clean_text, extra_datasets } =
        &evidence.data_provenance;
    let mut members = object(json!({
        "primary_dataset": primary_dataset,
        "fingerprint": dataset_fingerprint(fingerprint),
        "shuffle": shuffle,
        "clean_text": clean_text,
    }));
    if !extra_datasets.is_empty() {
        let rows: Vec<Value> = extra_datasets
            .iter()
            .map(|(path, print)| json!({"path": path, "fingerprint": dataset_fingerprint(print)}))
            .collect();
        members.insert("extra_datasets".to_owned(), Value::Array(rows));
    }
    Value::Object(members)
}

pub(super) fn dataset_fingerprint(print: &DatasetFingerprint) -> Value {
    let mut members = object(json!({"path": print.path, "timestamp": print.timestamp}));
    let optional = [
        ("source", json!(print.source)),
        ("resolved_path", json!(print.resolved_path)),
        ("size_bytes", json!(print.size_bytes)),
        ("modified", json!(print.modified)),
        ("sha256", json!(print.sha256)),
        ("rows", json!(print.rows)),
        ("hf_revision", json!(print.hf_revision)),
        ("hf_revision_source", json!(print.hf_revision_source)),
        ("hf_revision_reason", json!(print.hf_revision_reason)),
    ];
    for (key, value) in optional {
        if !value.is_null() {
            members.insert(key.to_owned(), value);
        }
    }
    Value::Object(members)
}

/// `risk_assessment.json`, when the section exists.
#[must_use]
pub fn risk_assessment(evidence: &Evidence) -> Option<Value> {
    evidence.risk_assessment.clone().map(Value::Object)
}

/// `training_manifest.json`: the flat summary with `run_id`, `config_hash` and `schema_version`.
#[must_use]
pub fn training_manifest(evidence: &Evidence) -> Value {
    let mut members = standalone_mark(evidence);
    let run_id = (!evidence.technical.is_standalone).then_some(&evidence.run_id);
    members.extend(object(json!({
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "config_hash": evidence.config_hash,
    })));
    members.extend(summary(evidence));
    Value::Object(members)
}

/// `training_manifest.yaml`: the flat summary for operators.
///
/// # Panics
/// Never: a map of plain values can always be written as YAML.
#[must_use]
pub fn training_manifest_yaml(evidence: &Evidence) -> String {
    let mut members = standalone_mark(evidence);
    members.extend(summary(evidence));
    let text = serde_yaml::to_string(&members).expect("plain values");
    // Old YAML readers take a bare time stamp for a date object; quotes keep it text everywhere.
    let quote = |line: &str| match line.strip_prefix("generated_at: ") {
        Some(time) if !time.starts_with('\'') => format!("generated_at: '{time}'\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(quote).collect()
}

fn summary(evidence: &Evidence) -> Map<String, Value> {
    let metrics = evidence.metrics.iter().filter(|(key, _)| !key.starts_with("benchmark/"));
    let metrics: Map<String, Value> =
        metrics.map(|(key, value)| (key.clone(), rounded(*value))).collect();
    object(json!({
        "forgelm_version": evidence.forgelm_version,
        "generated_at": evidence.generated_at.to_string(),
        "base_model": evidence.model_lineage.base_model,
        "adapter_method": evidence.model_lineage.adapter_method,
        "trainer_type": evidence.training_parameters.trainer_type,
        "dataset": evidence.data_provenance.primary_dataset,
        "epochs": whole_or_number(evidence.training_parameters.epochs),
        "final_metrics": metrics,
    }))
}

/// To four decimals.
fn rounded(value: f64) -> Value {
    let text = format!("{value:.4}");
    number(text.parse().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        compliance_report, data_provenance, risk_assessment, training_manifest,
        training_manifest_yaml,
    };
    use crate::documents::evidence::tests::evidence;

    #[test]
    fn the_yaml_summary_is_that_of_the_specification() {
        let expected = "\
forgelm_version: 0.1.0
generated_at: '2026-01-01T01:00:00.000001+00:00'
base_model: org/base-7b
adapter_method: LoRA + r=8
trainer_type: sft
dataset: data/train.jsonl
epochs: 3
final_metrics:
  eval_loss: 0.42
  perplexity: nan
";
        assert_eq!(training_manifest_yaml(&evidence()), expected);
    }

    #[test]
    fn the_report_has_its_keys_in_order_and_no_document_contradicts_it() {
        let evidence = evidence();
        let report = compliance_report(&evidence);
        let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "forgelm_version",
                "generated_at",
                "config_hash",
                "model_lineage",
                "training_parameters",
                "data_provenance",
                "evaluation_results",
                "annex_iv",
                "risk_assessment",
                "run_id",
                "resource_usage",
                "operator",
                "started_at",
                "finished_at",
                "outcome",
                "gates",
                "plugins",
            ]
        );
        assert_eq!(report["data_provenance"], data_provenance(&evidence));
        assert_eq!(Some(&report["risk_assessment"]), risk_assessment(&evidence).as_ref());
        let manifest = training_manifest(&evidence);
        for key in ["run_id", "config_hash", "forgelm_version", "generated_at"] {
            assert_eq!(manifest[key], report[key], "{key}");
        }
        assert_eq!(manifest["base_model"], report["model_lineage"]["base_model"]);
        assert_eq!(manifest["epochs"], report["training_parameters"]["epochs"]);
        assert_eq!(report["training_parameters"]["learning_rate"], 2e-5);
        assert_eq!(report["evaluation_results"]["metrics"]["perplexity"], "nan");
        let yaml: Value = serde_yaml::from_str(&training_manifest_yaml(&evidence)).unwrap();
        assert_eq!(yaml["dataset"], report["data_provenance"]["primary_dataset"]);
        assert_eq!(manifest["final_metrics"]["eval_loss"], json!(0.42));
    }

    #[test]
    fn the_fingerprint_leaves_out_what_is_not_known() {
        let provenance = data_provenance(&evidence());
        assert_eq!(
            provenance["fingerprint"],
            json!({
                "path": "data/train.jsonl",
                "timestamp": "2026-01-01T00:00:00.000001+00:00",
                "size_bytes": 10,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "hf_revision_source": "local_path",
            })
        );
    }
}
