//! `ai.spdx.json`: the same bill of materials as SPDX 3.0.1 (JSON-LD) has it, with the AI and Dataset
//! profiles.
//!
//! Tiers of the AI Act are no `safetyRiskAssessment`, which is another scale: they stand in a comment.
//! What is not known has no member.

use serde_json::{Map, Value, json};

use super::annex_iv::{Answers, Surroundings, answers};
use super::evidence::Evidence;
use super::inventory::{
    DataSet, base_version, data_sets, is_sha256, joules, libraries, model_name, plain, results,
    uuid,
};
use super::report::{object, training_parameters};
use crate::BUILDER_NAME;

/// File name below the folder of documents.
pub const SPDX: &str = "ai.spdx.json";

/// The document; `None` without a run, since there is no model then.
#[must_use]
pub fn spdx(evidence: &Evidence, around: &Surroundings) -> Option<Value> {
    if evidence.technical.is_standalone {
        return None;
    }
    let given = answers(evidence);
    let mut graph = Graph::new(evidence);
    graph.creation(evidence, &given);
    graph.model(evidence, &given);
    let mut files = Vec::new();
    for (i, file) in around.model_files.iter().enumerate() {
        files.push(graph.file(&format!("model-file-{i}"), &file.name, &file.sha256, None));
    }
    graph.relate("model", "contains", files);
    graph.base(evidence);
    graph.relate("model", "descendantOf", vec!["base-model".to_owned()]);
    let mut sets = Vec::new();
    for (i, set) in data_sets(evidence).iter().enumerate() {
        sets.push(graph.data(i, set, &given));
    }
    graph.relate("model", "trainedOn", sets);
    let mut used = Vec::new();
    for (i, library) in libraries(evidence).into_iter().enumerate() {
        let name = format!("library-{i}");
        let mut members = object(json!({
            "name": library.name,
            "software_primaryPurpose": "library",
        }));
        let version = (!library.version.is_empty()).then(|| json!(library.version));
        put(&mut members, "software_packageVersion", version);
        put(&mut members, "verifiedUsing", library.sha256.as_deref().map(hashes));
        members.insert("comment".to_owned(), json!(library.methods.join("; ")));
        graph.element("software_Package", &name, members);
        used.push(name);
    }
    graph.relate("model", "dependsOn", used);
    graph.relate("model", "usesTool", vec!["tool".to_owned()]);
    Some(graph.finish(evidence))
}

/// The elements so far.
struct Graph {
    /// What every name in it begins with.
    base: String,
    elements: Vec<Value>,
    n_relations: usize,
}

impl Graph {
    fn new(evidence: &Evidence) -> Self {
        let base = format!("urn:uuid:{}#", uuid(evidence, SPDX));
        Self { base, elements: Vec::new(), n_relations: 0 }
    }

    fn id(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    fn element(&mut self, kind: &str, name: &str, members: Map<String, Value>) {
        let mut element = object(json!({
            "type": kind,
            "spdxId": self.id(name),
            "creationInfo": "_:creation",
        }));
        element.extend(members);
        self.elements.push(Value::Object(element));
    }

    fn relate(&mut self, from: &str, kind: &str, to: Vec<String>) {
        if to.is_empty() {
            return;
        }
        let to: Vec<String> = to.iter().map(|name| self.id(name)).collect();
        let members = object(json!({
            "from": self.id(from),
            "relationshipType": kind,
            "to": to,
        }));
        let name = format!("relationship-{}", self.n_relations);
        self.n_relations += 1;
        self.element("Relationship", &name, members);
    }

    /// Who made this document, with what, and when.
    fn creation(&mut self, evidence: &Evidence, given: &Answers) {
        self.elements.push(json!({
            "type": "CreationInfo",
            "@id": "_:creation",
            "specVersion": "3.0.1",
            "created": seconds(evidence),
            "createdBy": [self.id("agent")],
            "createdUsing": [self.id("tool")],
        }));
        let (kind, name) = match given.text("compliance.provider_name") {
            Some(name) => ("Organization", name),
            None => ("Agent", evidence.operator.clone()),
        };
        self.element(kind, "agent", object(json!({"name": name})));
        let tool = format!("{BUILDER_NAME} {}", evidence.forgelm_version);
        self.element("Tool", "tool", object(json!({"name": tool})));
    }

    fn model(&mut self, evidence: &Evidence, given: &Answers) {
        let lineage = &evidence.model_lineage;
        let mut members = object(json!({
            "name": model_name(evidence),
            "comment": comment(evidence),
            "builtTime": seconds(evidence),
            "suppliedBy": self.id("agent"),
            "software_primaryPurpose": "model",
        }));
        put(&mut members, "software_packageVersion", given.get("compliance.system_version"));
        if let Some(date) = given.text("compliance.gpai.release_date") {
            members.insert("releaseTime".to_owned(), json!(format!("{date}T00:00:00Z")));
        }
        let family = evidence.technical.architecture.get("model_type").and_then(Value::as_str);
        put(&mut members, "ai_typeOfModel", family.map(|name| json!([name])));
        let parameters = object(training_parameters(evidence));
        let parameters = parameters.iter().map(|(key, value)| entry(key, &plain(value)));
        members.insert("ai_hyperparameter".to_owned(), parameters.collect());
        let metrics: Vec<Value> =
            results(evidence).iter().map(|(name, value)| entry(name, value)).collect();
        put(&mut members, "ai_metric", (!metrics.is_empty()).then(|| json!(metrics)));
        let objective = evidence.technical.objective.as_deref().unwrap_or("not recorded");
        let training = format!(
            "{} ({}); objective: {objective}",
            lineage.adapter_method, evidence.training_parameters.trainer_type
        );
        members.insert("ai_informationAboutTraining".to_owned(), json!(training));
        let preprocessing = preprocessing(evidence);
        let has_any = !preprocessing.is_empty();
        put(&mut members, "ai_modelDataPreprocessing", has_any.then(|| json!(preprocessing)));
        let texts = [
            ("ai_informationAboutApplication", "compliance.intended_purpose"),
            ("ai_limitation", "compliance.known_limitations"),
        ];
        for (member, key) in texts {
            put(&mut members, member, given.text(key).map(Value::String));
        }
        let explained = given.text("compliance.annex_iv.interpretation_measures");
        put(&mut members, "ai_modelExplainability", explained.map(|text| json!([text])));
        let standards = given.get("compliance.annex_iv.standards");
        let standards = standards.as_ref().and_then(Value::as_array).into_iter().flatten();
        let standards: Vec<&Value> = standards.filter_map(|row| row.get("standard")).collect();
        put(
            &mut members,
            "ai_standardCompliance",
            (!standards.is_empty()).then(|| json!(standards)),
        );
        put(&mut members, "ai_useSensitivePersonalInformation", personal(given));
        let energy = joules(evidence).map(|joules| {
            json!({
                "type": "ai_EnergyConsumption",
                "ai_finetuningEnergyConsumption": [{
                    "type": "ai_EnergyConsumptionDescription",
                    "ai_energyQuantity": joules / 1e6,
                    "ai_energyUnit": "megajoule",
                }],
            })
        });
        put(&mut members, "ai_energyConsumption", energy);
        self.element("ai_AIPackage", "model", members);
    }

    fn base(&mut self, evidence: &Evidence) {
        let lineage = &evidence.model_lineage;
        let mut members = object(json!({
            "name": lineage.base_model,
            "software_primaryPurpose": "model",
        }));
        put(&mut members, "software_packageVersion", base_version(evidence).map(|v| json!(v)));
        let sha256 = lineage.base_model_revision.sha256.as_deref();
        put(&mut members, "verifiedUsing", sha256.filter(|hex| is_sha256(hex)).map(hashes));
        self.element("ai_AIPackage", "base-model", members);
    }

    fn data(&mut self, i: usize, set: &DataSet<'_>, given: &Answers) -> String {
        let name = format!("data-{i}");
        let mut members = object(json!({
            "name": set.name,
            "summary": set.size_text(),
            "software_primaryPurpose": "data",
            "dataset_datasetType": ["text"],
        }));
        put(
            &mut members,
            "software_packageVersion",
            set.print.hf_revision.as_ref().map(|v| json!(v)),
        );
        let sha256 = set.print.sha256.as_deref().filter(|hex| is_sha256(hex));
        put(&mut members, "verifiedUsing", sha256.map(hashes));
        put(&mut members, "dataset_datasetSize", set.print.rows.map(|rows| json!(rows)));
        let collected = given.text("data.governance.collection_method");
        put(&mut members, "dataset_dataCollectionProcess", collected.map(Value::String));
        let biases = given.text("data.governance.known_biases");
        put(&mut members, "dataset_knownBias", biases.map(|text| json!([text])));
        let cleaned = given.text("compliance.annex_iv.data_sheet.cleaning");
        put(&mut members, "dataset_dataPreprocessing", cleaned.map(|text| json!([text])));
        put(&mut members, "dataset_hasSensitivePersonalInformation", personal(given));
        self.element("dataset_DatasetPackage", &name, members);
        let mut files = Vec::new();
        for (k, file) in set.files.iter().enumerate() {
            let rows = file.rows.map(|rows| format!("{rows} rows, {} bytes", file.size_bytes));
            files.push(self.file(&format!("{name}-file-{k}"), &file.file, &file.sha256, rows));
        }
        self.relate(&name, "contains", files);
        name
    }

    fn file(&mut self, name: &str, shown: &str, sha256: &str, summary: Option<String>) -> String {
        let mut members = object(json!({"name": shown, "verifiedUsing": hashes(sha256)}));
        put(&mut members, "summary", summary.map(Value::String));
        self.element("software_File", name, members);
        name.to_owned()
    }

    fn finish(mut self, evidence: &Evidence) -> Value {
        let elements: Vec<Value> =
            self.elements.iter().filter_map(|element| element.get("spdxId").cloned()).collect();
        let members = object(json!({
            "name": format!("{} of run {}", model_name(evidence), evidence.run_id),
            "profileConformance": ["core", "software", "ai", "dataset"],
            "rootElement": [self.id("model")],
            "element": elements,
        }));
        self.element("SpdxDocument", "document", members);
        json!({
            "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld",
            "@graph": self.elements,
        })
    }
}

/// Adds a member where there is a value.
fn put(members: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    members.extend(value.map(|value| (key.to_owned(), value)));
}

fn hashes(sha256: &str) -> Value {
    json!([{"type": "Hash", "algorithm": "sha256", "hashValue": sha256}])
}

fn entry(key: &str, value: &str) -> Value {
    json!({"type": "DictionaryEntry", "key": key, "value": value})
}

/// The time in the one form that SPDX has.
fn seconds(evidence: &Evidence) -> String {
    evidence.generated_at.to_text_seconds().replace("+00:00", "Z")
}

/// Whether there is sensitive personal data: a config says only whether there is personal data at all,
/// so that its no is a no, and its yes is open.
fn personal(given: &Answers) -> Option<Value> {
    let has_any = given.get("data.governance.personal_data_included")?.as_bool()?;
    Some(json!(if has_any { "noAssertion" } else { "no" }))
}

fn comment(evidence: &Evidence) -> String {
    let tier = evidence.compliance.as_ref().and_then(|section| section.get("risk_classification"));
    let tier = tier.map_or_else(String::new, |tier| {
        format!("; tier under Regulation (EU) 2024/1689: {}", plain(tier))
    });
    format!(
        "run {}, config {}, outcome {}{tier}",
        evidence.run_id,
        evidence.config_hash,
        evidence.outcome.as_str()
    )
}

fn preprocessing(evidence: &Evidence) -> Vec<String> {
    let filters = evidence.technical.data_filters.iter();
    filters.map(|(key, value)| format!("{key}: {}", plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::spdx;
    use crate::tests::published::{around, full};
    use serde_json::{Value, json};

    #[test]
    fn every_name_that_is_used_is_that_of_an_element() {
        let document = spdx(&full(), &around()).unwrap();
        let graph = document["@graph"].as_array().unwrap();
        let ids: Vec<&Value> = graph.iter().filter_map(|element| element.get("spdxId")).collect();
        let mut n_related = 0;
        for element in graph.iter().filter(|element| element["type"] == "Relationship") {
            let to = element["to"].as_array().unwrap();
            for id in to.iter().chain([&element["from"]]) {
                assert!(ids.contains(&id), "{id}");
                n_related += 1;
            }
        }
        assert_eq!(n_related, 17);
        let model = graph.iter().find(|element| element["type"] == "ai_AIPackage").unwrap();
        let energy = &model["ai_energyConsumption"]["ai_finetuningEnergyConsumption"][0];
        assert_eq!(
            (&energy["ai_energyQuantity"], &energy["ai_energyUnit"]),
            (&json!(7.2), &json!("megajoule"))
        );
        assert_eq!(graph[0]["created"], "2026-01-01T01:00:00Z");
        assert_eq!(model["ai_useSensitivePersonalInformation"], "no");
    }

    #[test]
    fn without_a_measurement_there_is_no_energy() {
        let mut evidence = full();
        evidence
            .resource_usage
            .as_mut()
            .unwrap()
            .insert("energy_joules".to_owned(), json!("not measured"));
        let document = spdx(&evidence, &around()).unwrap();
        assert!(!document.to_string().contains("nergy"), "{document}");
    }
}
