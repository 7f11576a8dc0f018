//! `mlbom.cdx.json`: the bill of materials of a tuned model, as CycloneDX 1.6 (ECMA-424) has it.
//!
//! The model is the component that it is about, with its files by digest and its model card; base
//! model, data sets and libraries are what it depends on. What is not known has no member.

use serde_json::{Map, Value, json};

use super::annex_iv::{Answers, Surroundings, answers};
use super::evidence::Evidence;
use super::inventory::{
    DataSet, base_version, data_sets, is_sha256, joules, libraries, model_name, plain, results,
    uuid,
};
use super::report::object;
use crate::BUILDER_NAME;

/// File name below the folder of documents.
pub const MLBOM: &str = "mlbom.cdx.json";

const MODEL: &str = "model";
const BASE: &str = "base-model";
const TOOL: &str = "tool";

/// The document; `None` without a run, since there is no model then.
#[must_use]
pub fn mlbom(evidence: &Evidence, around: &Surroundings) -> Option<Value> {
    if evidence.technical.is_standalone {
        return None;
    }
    let given = answers(evidence);
    let sets = data_sets(evidence);
    let mut components = vec![base(evidence)];
    components.extend(sets.iter().enumerate().map(|(i, set)| data(i, set)));
    let libraries = library_components(evidence);
    components.extend(libraries);
    let refs: Vec<Value> = components.iter().map(|row| row["bom-ref"].clone()).collect();
    let alone = refs.iter().map(|name| json!({"ref": name}));
    let mut dependencies = vec![json!({"ref": MODEL, "dependsOn": refs})];
    dependencies.extend(alone);
    let mut metadata = object(json!({
        "timestamp": evidence.generated_at.to_string(),
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [tool(evidence)]},
    }));
    if let Some(name) = given.text("compliance.provider_name") {
        metadata.insert("manufacturer".to_owned(), json!({"name": name}));
    }
    metadata.insert("component".to_owned(), model(evidence, &given, around, sets.len()));
    Some(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(evidence, MLBOM)),
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    }))
}

fn hashes(sha256: &str) -> Value {
    json!([{"alg": "SHA-256", "content": sha256}])
}

/// Adds a member where there is a value.
fn put(members: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    members.extend(value.map(|value| (key.to_owned(), value)));
}

/// Pairs under a name of ours; those without a value are left out.
fn properties<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Vec<Value> {
    let row = |(name, value): (&str, Option<String>)| {
        Some(json!({"name": format!("forgelm:{name}"), "value": value?}))
    };
    pairs.into_iter().filter_map(row).collect()
}

fn tool(evidence: &Evidence) -> Value {
    let builder = &evidence.builder;
    json!({
        "type": "application",
        "bom-ref": TOOL,
        "name": BUILDER_NAME,
        "version": evidence.forgelm_version,
        "properties": properties([
            ("target", Some(builder.target.clone())),
            ("commit", builder.commit.clone()),
        ]),
    })
}

fn model(evidence: &Evidence, given: &Answers, around: &Surroundings, n_sets: usize) -> Value {
    let mut members = object(json!({
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": model_name(evidence),
    }));
    put(&mut members, "version", given.get("compliance.system_version"));
    put(&mut members, "description", given.get("compliance.intended_purpose"));
    let license = given.text("compliance.gpai.license");
    put(&mut members, "licenses", license.map(|name| json!([{"license": {"name": name}}])));
    let files: Vec<Value> = around
        .model_files
        .iter()
        .enumerate()
        .map(|(i, file)| {
            json!({
                "type": "file",
                "bom-ref": format!("{MODEL}-file-{i}"),
                "name": file.name,
                "hashes": hashes(&file.sha256),
            })
        })
        .collect();
    let lineage = &evidence.model_lineage;
    let rows = properties([
        ("run_id", Some(evidence.run_id.clone())),
        ("config_hash", Some(evidence.config_hash.clone())),
        ("outcome", Some(evidence.outcome.as_str().to_owned())),
        ("adapter_method", Some(lineage.adapter_method.clone())),
        ("quantization", Some(lineage.quantization.clone())),
        ("trainer_type", Some(evidence.training_parameters.trainer_type.clone())),
    ]);
    members.insert("modelCard".to_owned(), card(evidence, given, n_sets));
    put(&mut members, "components", (!files.is_empty()).then(|| json!(files)));
    members.insert("properties".to_owned(), json!(rows));
    Value::Object(members)
}

fn card(evidence: &Evidence, given: &Answers, n_sets: usize) -> Value {
    let facts = &evidence.technical;
    let mut parameters = Map::new();
    put(&mut parameters, "approach", approach(evidence).map(|word| json!({"type": word})));
    parameters.insert("task".to_owned(), json!("text-generation"));
    let family = facts.architecture.get("model_type").filter(|name| name.is_string());
    put(&mut parameters, "architectureFamily", family.cloned());
    let data: Vec<Value> = (0..n_sets).map(|i| json!({"ref": format!("data-{i}")})).collect();
    parameters.insert("datasets".to_owned(), json!(data));
    parameters.insert("inputs".to_owned(), json!([{"format": "text"}]));
    parameters.insert("outputs".to_owned(), json!([{"format": "text"}]));
    let metrics: Vec<Value> = results(evidence)
        .into_iter()
        .map(|(name, value)| json!({"type": name, "value": value}))
        .collect();
    let sizes = facts.architecture.iter().map(|(key, value)| (key.as_str(), Some(plain(value))));
    let mut card = object(json!({
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
    }));
    let considerations = considerations(evidence, given);
    let has_any = !considerations.is_empty();
    put(&mut card, "considerations", has_any.then_some(Value::Object(considerations)));
    put(&mut card, "properties", Some(json!(properties(sizes))));
    Value::Object(card)
}

/// The kind of learning, for the trainers whose kind is known.
fn approach(evidence: &Evidence) -> Option<&'static str> {
    match evidence.training_parameters.trainer_type.as_str() {
        "sft" | "dpo" | "simpo" | "kto" | "orpo" => Some("supervised"),
        "grpo" => Some("reinforcement-learning"),
        _ => None,
    }
}

fn considerations(evidence: &Evidence, given: &Answers) -> Map<String, Value> {
    let text = |key: &str| given.text(key).map(|text| json!([text]));
    let mut found = Map::new();
    put(&mut found, "users", text("compliance.annex_iv.design.intended_persons"));
    put(&mut found, "useCases", text("compliance.intended_purpose"));
    put(&mut found, "technicalLimitations", text("compliance.known_limitations"));
    put(&mut found, "performanceTradeoffs", text("compliance.annex_iv.design.trade_offs"));
    let measures = given.texts("risk_assessment.mitigation_measures").join("; ");
    let risks: Vec<Value> = given
        .texts("risk_assessment.foreseeable_misuse")
        .into_iter()
        .map(|name| {
            let mut risk = object(json!({"name": name}));
            let is_there = !measures.is_empty();
            put(&mut risk, "mitigationStrategy", is_there.then(|| json!(measures)));
            Value::Object(risk)
        })
        .collect();
    put(&mut found, "ethicalConsiderations", (!risks.is_empty()).then(|| json!(risks)));
    // Who provided the energy is not known: the list that must be there is empty.
    let energy = joules(evidence).map(|joules| {
        json!({"energyConsumptions": [{
            "activity": "fine-tuning",
            "energyProviders": [],
            "activityEnergyCost": {"value": joules / 3.6e6, "unit": "kWh"},
        }]})
    });
    put(&mut found, "environmentalConsiderations", energy);
    let impact = given.text("compliance.annex_iv.testing.discriminatory_impact");
    let groups = given.text("compliance.annex_iv.group_performance");
    if impact.is_some() || groups.is_some() {
        let mut row = Map::new();
        put(&mut row, "groupAtRisk", groups.map(Value::String));
        put(&mut row, "mitigationStrategy", impact.map(Value::String));
        found.insert("fairnessAssessments".to_owned(), json!([row]));
    }
    found
}

fn base(evidence: &Evidence) -> Value {
    let lineage = &evidence.model_lineage;
    let revision = &lineage.base_model_revision;
    let mut members = object(json!({
        "type": "machine-learning-model",
        "bom-ref": BASE,
        "name": lineage.base_model,
    }));
    put(&mut members, "version", base_version(evidence).map(|text| json!(text)));
    let sha256 = revision.sha256.as_deref().filter(|hex| is_sha256(hex));
    put(&mut members, "hashes", sha256.map(hashes));
    let rows = properties([("resolution_source", Some(revision.resolution_source.clone()))]);
    members.insert("properties".to_owned(), json!(rows));
    Value::Object(members)
}

fn data(i: usize, set: &DataSet<'_>) -> Value {
    let mut members = object(json!({
        "type": "data",
        "bom-ref": format!("data-{i}"),
        "name": set.name,
    }));
    put(&mut members, "version", set.print.hf_revision.as_ref().map(|text| json!(text)));
    let sha256 = set.print.sha256.as_deref().filter(|hex| is_sha256(hex));
    put(&mut members, "hashes", sha256.map(hashes));
    let contents = json!([{"type": "dataset", "name": set.name, "description": set.size_text()}]);
    members.insert("data".to_owned(), contents);
    let files: Vec<Value> = set
        .files
        .iter()
        .enumerate()
        .map(|(k, file)| {
            json!({
                "type": "file",
                "bom-ref": format!("data-{i}-file-{k}"),
                "name": file.file,
                "hashes": hashes(&file.sha256),
                "properties": properties([
                    ("size_bytes", Some(file.size_bytes.to_string())),
                    ("rows", file.rows.map(|rows| rows.to_string())),
                ]),
            })
        })
        .collect();
    put(&mut members, "components", (!files.is_empty()).then(|| json!(files)));
    let rows = set.print.rows.map(|rows| rows.to_string());
    put(&mut members, "properties", Some(json!(properties([("rows", rows)]))));
    Value::Object(members)
}

fn library_components(evidence: &Evidence) -> Vec<Value> {
    let row = |(i, library): (usize, super::inventory::Library)| {
        let mut members = object(json!({
            "type": "library",
            "bom-ref": format!("library-{i}"),
            "name": library.name,
        }));
        let version = (!library.version.is_empty()).then(|| json!(library.version));
        put(&mut members, "version", version);
        put(&mut members, "hashes", library.sha256.as_deref().map(hashes));
        let methods = library.methods.iter().map(|text| ("method", Some(text.clone())));
        members.insert("properties".to_owned(), json!(properties(methods)));
        Value::Object(members)
    };
    libraries(evidence).into_iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::mlbom;
    use crate::tests::published::{around, full};
    use serde_json::{Value, json};

    #[test]
    fn everything_that_went_in_is_a_component_that_the_model_depends_on() {
        let evidence = full();
        let bom = mlbom(&evidence, &around()).unwrap();
        let components = bom["components"].as_array().unwrap();
        let names: Vec<&str> = components.iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["org/base-7b", "data/train.jsonl", "extra", "forgelm_trainers"]);
        let depends = bom["dependencies"][0]["dependsOn"].as_array().unwrap();
        let refs: Vec<&Value> = components.iter().map(|row| &row["bom-ref"]).collect();
        assert_eq!(depends.iter().collect::<Vec<_>>(), refs);
        assert_eq!(components[2]["components"][1]["hashes"][0]["content"], "e".repeat(64));
        assert_eq!(components[3]["hashes"][0]["content"], "f".repeat(64));
        let model = &bom["metadata"]["component"];
        assert_eq!(model["components"][0]["name"], "final_model/adapter_model.safetensors");
        let metrics = &model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"];
        assert_eq!(
            metrics,
            &json!([
                {"type": "benchmark/x", "value": "0.5"},
                {"type": "eval_loss", "value": "0.42"},
                {"type": "perplexity", "value": "nan"},
            ])
        );
        let energy = &model["modelCard"]["considerations"]["environmentalConsiderations"];
        let cost = &energy["energyConsumptions"][0]["activityEnergyCost"];
        assert_eq!(cost, &json!({"value": 2.0, "unit": "kWh"}));
        assert_eq!(bom["metadata"]["timestamp"], "2026-01-01T01:00:00.000001+00:00");
    }

    #[test]
    fn a_config_alone_has_no_model_to_list() {
        let mut evidence = full();
        evidence.technical.is_standalone = true;
        assert!(mlbom(&evidence, &around()).is_none());
    }
}
