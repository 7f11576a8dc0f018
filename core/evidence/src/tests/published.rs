//! The documents for other programs, for one complete and one hostile run: the files in `documents/`
//! are what the validators of the formats' own people accepted (`tools/golden/published.py`), and the
//! code must write them byte for byte.

use serde_json::{Map, Value, json};

use crate::documents::annex_iv::Surroundings;
use crate::documents::evidence::tests::evidence;
use crate::documents::evidence::{DatasetFingerprint, Evidence};
use crate::documents::facts::{DataField, DataFileRecord, FieldKind};
use crate::documents::record::{FileRecord, training_documents};

/// Names of the documents that are held.
const NAMES: [&str; 3] = ["mlbom.cdx.json", "ai.spdx.json", "croissant.json"];

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn file(dataset: &str, file: &str, digit: &str, rows: u64) -> DataFileRecord {
    DataFileRecord {
        dataset: dataset.to_owned(),
        file: file.to_owned(),
        sha256: digit.repeat(64),
        size_bytes: 10,
        rows: Some(rows),
        fields: fields(&[
            ("prompt", FieldKind::Text),
            ("n", FieldKind::Integer),
            (
                "messages",
                FieldKind::List(Box::new(FieldKind::Object(fields(&[
                    ("role", FieldKind::Text),
                    ("weight", FieldKind::Number),
                    ("tags", FieldKind::List(Box::new(FieldKind::Text))),
                ])))),
            ),
            ("meta", FieldKind::Object(fields(&[("ok", FieldKind::Boolean)]))),
            ("odd", FieldKind::Other),
        ]),
    }
}

fn fields(of: &[(&str, FieldKind)]) -> Vec<DataField> {
    of.iter()
        .map(|(name, kind)| DataField { name: (*name).to_owned(), kind: kind.clone() })
        .collect()
}

/// A run of which everything is known.
pub(crate) fn full() -> Evidence {
    let mut evidence = evidence();
    let revision = &mut evidence.model_lineage.base_model_revision;
    revision.sha256 = Some("b".repeat(64));
    evidence.data_provenance.fingerprint.rows = Some(3);
    let extra = DatasetFingerprint {
        path: "extra".to_owned(),
        sha256: Some("c".repeat(64)),
        rows: Some(2),
        size_bytes: Some(20),
        hf_revision: Some("0123abcd".to_owned()),
        ..DatasetFingerprint::default()
    };
    evidence.data_provenance.extra_datasets = vec![("extra".to_owned(), extra)];
    evidence.technical.data_files = vec![
        file("data/train.jsonl", "train.jsonl", "9", 3),
        file("extra", "a.csv", "d", 1),
        file("extra", "b.json", "e", 1),
    ];
    evidence.technical.architecture =
        map(json!({"model_type": "llama", "n_parameters": 134_515_008, "hidden_size": 576}));
    evidence.technical.input = map(json!({"context_length": 8192, "max_length": 2048}));
    evidence.technical.data_filters = map(json!({"clean_text": true, "rows_skipped": 0}));
    evidence.technical.objective = Some("negative log-likelihood of the answers".to_owned());
    evidence.technical.languages = vec!["en".to_owned()];
    evidence.technical.governance_answers = Some(map(json!({
        "collection_method": "exported from the ticket system",
        "annotation_process": "answers that staff wrote",
        "known_biases": "customers of one country",
        "personal_data_included": false,
        "dpia_completed": false,
    })));
    evidence.compliance = Some(map(json!({
        "provider_name": "Acme GmbH",
        "provider_contact": "ai@acme.example",
        "system_name": "Support Assistant",
        "system_version": "1.0.0",
        "intended_purpose": "Answer customers",
        "known_limitations": "No legal advice",
        "risk_classification": "limited-risk",
        "annex_iv": {
            "design": {"intended_persons": "staff", "trade_offs": "small and fast"},
            "group_performance": "measured for two groups",
            "interpretation_measures": "the source is shown",
            "standards": [{"standard": "ISO/IEC 42001:2023", "clauses": "", "evidence": ""}],
            "testing": {"discriminatory_impact": "questions in the names of several groups"},
        },
    })));
    evidence.risk_assessment = Some(map(json!({
        "intended_use": "support",
        "foreseeable_misuse": ["legal advice"],
        "mitigation_measures": ["a person reads each answer", "a filter"],
        "risk_category": "limited-risk",
    })));
    evidence.resource_usage = Some(map(json!({
        "training_duration_seconds": 3600.0,
        "energy_joules": 7_200_000.0,
        "flops": 1.5e15,
        "trained_tokens": 1000,
        "tokens": 1200,
    })));
    evidence.plugins = vec![json!({
        "kind": "trainer",
        "name": "sft",
        "library": "forgelm_trainers",
        "version": "0.1.0",
        "sha256": "f".repeat(64),
    })];
    evidence
}

/// The same run, with text that means to be more than text wherever people write.
pub(crate) fn hostile() -> Evidence {
    let text = "x\"\n\\u0000\u{0}\u{7}\u{1b}[0m\u{202e}# H\n<script>alert(1)</script> [a](javascript:b) \
                | `c` {\"@id\": \"_:d\"} urn:x:y %s ${e} 🦀";
    let mut evidence = full();
    let poison = |section: &mut Option<Map<String, Value>>| {
        let section = section.get_or_insert_default();
        section.values_mut().for_each(|value| spoil(value, text));
    };
    // A tier is a word of the config's own.
    let tier = json!("limited-risk");
    poison(&mut evidence.compliance);
    poison(&mut evidence.risk_assessment);
    poison(&mut evidence.technical.governance_answers);
    evidence.compliance.as_mut().unwrap().insert("risk_classification".to_owned(), tier.clone());
    evidence.risk_assessment.as_mut().unwrap().insert("risk_category".to_owned(), tier);
    text.clone_into(&mut evidence.model_lineage.base_model);
    text.clone_into(&mut evidence.operator);
    text.clone_into(&mut evidence.data_provenance.primary_dataset);
    evidence.data_provenance.extra_datasets[0].0 = text.to_owned();
    for record in &mut evidence.technical.data_files {
        text.clone_into(&mut record.dataset);
        record.file = format!("{text}/{}", record.file);
        record.fields.iter_mut().for_each(|field| text.clone_into(&mut field.name));
    }
    evidence.metrics.insert(text.to_owned(), f64::INFINITY);
    for plugin in &mut evidence.plugins {
        plugin["name"] = json!(text);
        plugin["library"] = json!(text);
    }
    evidence.technical.objective = Some("y".repeat(100_000));
    evidence
}

/// Replaces every text in a value, however deep.
fn spoil(value: &mut Value, text: &str) {
    match value {
        Value::String(own) => text.clone_into(own),
        Value::Array(items) => items.iter_mut().for_each(|item| spoil(item, text)),
        Value::Object(members) => members.values_mut().for_each(|item| spoil(item, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

pub(crate) fn around() -> Surroundings {
    let model = |name: &str, digit: &str| FileRecord {
        name: format!("final_model/{name}"),
        sha256: digit.repeat(64),
        size_bytes: 3000,
    };
    Surroundings {
        model_files: vec![model("adapter_model.safetensors", "7"), model("tokenizer.json", "8")],
        model_dir: Some("final_model".to_owned()),
        ..Surroundings::default()
    }
}

fn written(evidence: &Evidence) -> Vec<(&'static str, String)> {
    let documents = training_documents(evidence, &around());
    let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.expect("there is one")).unwrap();
    documents
        .into_iter()
        .filter(|(name, _)| NAMES.contains(name))
        .map(|(name, bytes)| (name, text(bytes)))
        .collect()
}

#[test]
fn the_documents_are_those_that_the_validators_accepted() {
    for (run, evidence) in [("full", full()), ("hostile", hostile())] {
        let found = written(&evidence);
        assert_eq!(found.len(), NAMES.len());
        for (name, text) in found {
            let path = golden(run, name);
            let expected = std::fs::read_to_string(&path).unwrap();
            assert!(text == expected, "{run}/{name} differs from {}", path.display());
        }
    }
}

#[test]
#[ignore = "writes the files that `the_documents_are_those_that_the_validators_accepted` compares with"]
fn write_the_documents_for_the_validators() {
    for (run, evidence) in [("full", full()), ("hostile", hostile())] {
        for (name, text) in written(&evidence) {
            let path = golden(run, name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            forgelm_artifact::write::atomic(&path, text.as_bytes()).unwrap();
        }
    }
}

fn golden(run: &str, name: &str) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/published");
    folder.join(run).join(name)
}
