use super::{ANNEX_IV, Answers, REQUIREMENTS, Surroundings, answers, document, open_points};
use crate::documents::evidence::Evidence;
use crate::documents::evidence::tests::evidence;
use crate::documents::facts::{Attachment, DataFileRecord, PreviousManifest};
use crate::documents::record::training_documents;
use crate::manifest_hash::manifest_hash;
use serde_json::{Map, Value, json};

/// Puts an answer under every key that any point or item names.
pub(crate) fn answer_everything(evidence: &mut Evidence) {
    let mut all = json!({});
    let open = open_points(&Answers::new(None, None, None));
    for key in open.iter().flat_map(|open| &open.keys).flat_map(|keys| keys.split(" or ").last()) {
        let mut at = &mut all;
        for part in key.split('.') {
            at = &mut at[part];
        }
        *at = json!(format!("the answer of {key}"));
    }
    let section = |name: &str| all[name].as_object().cloned().unwrap_or_default();
    let put = |to: &mut Option<Map<String, Value>>, from: Map<String, Value>| {
        to.get_or_insert_default().extend(from);
    };
    put(&mut evidence.compliance, section("compliance"));
    put(&mut evidence.risk_assessment, section("risk_assessment"));
    let governance = all["data"]["governance"].as_object().cloned().unwrap_or_default();
    put(&mut evidence.technical.governance_answers, governance);
}

fn around() -> Surroundings {
    let digests =
        [("final_model/deployer_instructions.md", "a"), ("final_model/model_integrity.json", "b")];
    Surroundings {
        digests: digests.map(|(name, hex)| (name.to_owned(), hex.repeat(64))).into(),
        model_files: Vec::new(),
        model_dir: Some("final_model".to_owned()),
        keyid: Some("0".repeat(64)),
    }
}

fn annex(evidence: &Evidence) -> Value {
    let documents = training_documents(evidence, &around());
    let (_, bytes) = documents.into_iter().find(|(name, _)| *name == ANNEX_IV).unwrap();
    serde_json::from_slice(&bytes.unwrap()).unwrap()
}

fn statuses(document: &Value) -> Vec<(&str, &str)> {
    let points = document["points"].as_object().unwrap().iter();
    points.map(|(point, row)| (point.as_str(), row["status"].as_str().unwrap())).collect()
}

#[test]
fn the_members_of_the_earlier_format_come_first_and_gaps_are_named() {
    let document = annex(&evidence());
    let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "system_identification",
            "intended_purpose",
            "system_components",
            "computational_resources",
            "data_governance",
            "technical_documentation",
            "monitoring_and_logging",
            "performance_metrics",
            "risk_management",
            "provider_metadata",
            "schema_version",
            "config_hash",
            "run_id",
            "outcome",
            "points",
            "gaps",
            "metadata",
        ]
    );
    assert_eq!(document["gaps"], json!(["intended_purpose"]));
    assert_eq!(document["intended_purpose"], Value::Null);
    let expected: Value =
        serde_json::from_str(include_str!("../../tests/annex_iv_upstream.json")).unwrap();
    for key in expected.as_object().unwrap().keys() {
        assert!(document.get(key).is_some(), "{key}");
    }
    assert_eq!(document["metadata"]["manifest_hash"], json!(manifest_hash(&document)));
    let pointer = &document["metadata"]["manifest_signature"];
    assert_eq!(pointer["scheme"], "dsse");
    assert_eq!(pointer["file"], "annex_iv_metadata.json.dsse.json");
    assert_eq!(pointer["keyid"], "0".repeat(64));
}

#[test]
fn a_point_without_an_answer_says_so_and_names_its_keys() {
    let document = annex(&evidence());
    let found = statuses(&document);
    assert_eq!(found.len(), REQUIREMENTS.len());
    let evident: Vec<&str> =
        found.iter().filter(|(_, status)| *status != "not_provided").map(|(p, _)| *p).collect();
    assert_eq!(evident, ["1(c)", "2(a)", "2(c)"], "what a run knows by itself");
    let row = &document["points"]["1(b)"];
    assert_eq!((&row["answer"], &row["evidence"]), (&Value::Null, &json!([])));
    assert_eq!(row["missing"], json!(["compliance.annex_iv.interactions"]));
    // The document and the check before training say the same.
    let open: Vec<&str> =
        open_points(&answers(&evidence())).iter().map(|open| open.point).collect();
    let missing: Vec<&str> =
        found.iter().filter(|(_, status)| *status == "not_provided").map(|(p, _)| *p).collect();
    assert_eq!(open, missing);
}

#[test]
fn answers_and_digests_fill_every_point() {
    let mut evidence = evidence();
    answer_everything(&mut evidence);
    evidence.technical.data_files = vec![DataFileRecord {
        dataset: "data/train.jsonl".to_owned(),
        file: "train.jsonl".to_owned(),
        sha256: "c".repeat(64),
        size_bytes: 10,
        rows: Some(3),
        fields: Vec::new(),
    }];
    let document = annex(&evidence);
    let statement = [
        "1(a)", "1(b)", "1(e)", "1(f)", "1(g)", "2(b)", "2(e)", "2(f)", "3", "4", "6", "7", "8",
        "9",
    ];
    for (point, status) in statuses(&document) {
        let expected = if statement.contains(&point) { "statement" } else { "evidence" };
        assert_eq!(status, expected, "{point}: {}", document["points"][point]);
        assert!(document["points"][point].get("missing").is_none());
    }
    assert_eq!(document["gaps"], json!([]));
    assert_eq!(document["points"]["1(h)"]["evidence"][0]["sha256"], "a".repeat(64));
    assert_eq!(document["points"]["2(d)"]["answer"]["data_files"][0]["rows"], 3);
    let items = document["points"]["1(h)"]["answer"]["article_13_3"].as_object().unwrap();
    assert_eq!((items.len(), items.values().filter(|word| **word == "given").count()), (12, 12));
    // A placeholder opens its point again.
    evidence.compliance.as_mut().unwrap()["annex_iv"]["product"] = json!("TBD");
    let document = annex(&evidence);
    assert_eq!(document["points"]["1(f)"]["status"], "not_provided");
    assert_eq!(document["points"]["1(f)"]["answer"], Value::Null);
}

#[test]
fn attached_files_and_the_manifest_before_are_evidence_by_content() {
    let mut evidence = evidence();
    answer_everything(&mut evidence);
    let before = annex(&evidence);
    let file = "compliance.annex_iv.declaration_of_conformity_file";
    evidence.technical.attachments =
        vec![Attachment { key: file, file: "declaration.pdf".to_owned(), sha256: "d".repeat(64) }];
    evidence.technical.previous = Some(PreviousManifest {
        file: "v1/annex_iv_metadata.json".to_owned(),
        sha256: "e".repeat(64),
        signature: "valid",
        keyid: None,
        document: before.clone(),
    });
    let section = evidence.compliance.as_mut().unwrap();
    section.insert("system_version".to_owned(), json!("2.0.0"));
    section.insert("previous_manifest".to_owned(), json!("v1/annex_iv_metadata.json"));
    evidence.training_parameters.lora_r = 16;
    let document = annex(&evidence);
    assert_eq!(document["points"]["8"]["status"], "evidence");
    assert_eq!(document["points"]["8"]["evidence"][0]["file"], "declaration.pdf");
    let point = &document["points"]["6"];
    assert_eq!(point["status"], "evidence");
    assert_eq!(point["answer"]["previous"]["manifest_hash"], before["metadata"]["manifest_hash"]);
    assert_eq!(point["answer"]["previous"]["sha256"], "e".repeat(64));
    let fields: Vec<&str> = point["answer"]["changes_since"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["system_components.training_parameters.lora_r", "system_identification.system_version"]
    );
}

#[test]
fn documents_of_a_config_alone_are_marked_and_claim_no_run() {
    let mut evidence = evidence();
    answer_everything(&mut evidence);
    evidence.technical.is_standalone = true;
    evidence.metrics.clear();
    evidence.resource_usage = None;
    let document = document(&evidence, &Surroundings::default()).unwrap();
    assert_eq!(document["standalone"], true);
    assert!(document.get("run_id").is_none());
    assert_eq!(document["gaps"], json!(["computational_resources", "performance_metrics"]));
    for point in ["1(c)", "1(d)", "1(h)", "2(a)", "2(c)", "2(d)", "2(g)"] {
        assert_eq!(document["points"][point]["status"], "not_provided", "{point}");
        assert_eq!(document["points"][point]["missing"], json!(["a training run"]));
    }
}

#[test]
fn without_the_section_there_is_no_document() {
    let mut evidence = evidence();
    evidence.compliance = None;
    assert!(document(&evidence, &around()).is_none());
}
