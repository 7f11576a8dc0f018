//! The documents of a run for other programs, and the drafts on general-purpose models: that they say
//! what the other documents say, are signed, and stay what they are whatever people write.

use crate::compliance::{Facts, complete, document};
use crate::reports;
use crate::support::Workplace;
use serde_json::{Map, Value, json};

const DRAFTS: [&str; 3] = ["annex_xi.md", "downstream.md", "gpai_summary.md"];
const LISTS: [&str; 3] = ["mlbom.cdx.json", "ai.spdx.json", "croissant.json"];

/// Changes that the check of all documents must see: file, from, to, the fact that differs then.
pub(crate) const CHANGES: [(&str, &str, &str, &str); 7] = [
    ("compliance/mlbom.cdx.json", "\"version\": \"0.1.0\"", "\"version\": \"0.2.0\"", "version"),
    ("compliance/mlbom.cdx.json", "final_model/README.md", "final_model/other.md", "model files"),
    (
        "compliance/ai.spdx.json",
        "\"dataset_datasetSize\": 24",
        "\"dataset_datasetSize\": 25",
        "rows",
    ),
    ("compliance/croissant.json", "\"name\": \"messages\"", "\"name\": \"text\"", "columns"),
    ("compliance/annex_xi.md", "outcome promoted", "outcome staged", "outcome"),
    ("compliance/gpai_summary.md", "Support Assistant", "Sales Assistant", "system"),
    ("compliance/report.html", "<td>sft</td>", "<td>dpo</td>", "trainer"),
];

/// Adds every place in these documents at which a fact stands.
pub(crate) fn add_facts(facts: &mut Facts, workplace: &Workplace) {
    let read = |name: &str| document(workplace, &format!("out/compliance/{name}"));
    let (bom, spdx, croissant) = (read(LISTS[0]), read(LISTS[1]), read(LISTS[2]));
    add_bom(facts, &bom);
    add_spdx(facts, &spdx);
    reports::add_facts(facts, workplace);
    let c = LISTS[2];
    let file = &croissant["distribution"][0];
    facts.put("data digest", c, &file["sha256"]);
    let rows = file["description"].as_str().unwrap().split(' ').rev().nth(1).unwrap();
    facts.put("rows", c, &json!(rows.parse::<u64>().unwrap()));
    facts.put("provider name", c, &croissant["creator"]["name"]);
    facts.put("collection", c, &croissant["rai:dataCollection"]);
    let name = croissant["name"].as_str().unwrap();
    facts.put("run id", c, &json!(name.strip_prefix("training-data-of-").unwrap()));
    let governance = read("data_governance_report.json");
    let columns = croissant["recordSet"][0]["field"].as_array().unwrap();
    let columns: Vec<&Value> = columns.iter().map(|field| &field["name"]).collect();
    facts.put("columns", c, &json!(columns));
    facts.put("columns", "data_governance_report.json", &governance["splits"]["train"]["columns"]);
    facts.put(
        "collection",
        "data_governance_report.json",
        &governance["governance"]["collection_method"],
    );
    let report = read("compliance_report.json");
    let r = "compliance_report.json";
    facts.put("provider name", r, &report["annex_iv"]["provider_name"]);
    facts.put("system", r, &report["annex_iv"]["system_name"]);
    let metrics = report["evaluation_results"]["metrics"].as_object().unwrap();
    let results: Map<String, Value> = metrics
        .iter()
        .filter(|(name, _)| !name.starts_with("resource/"))
        .map(|(name, value)| (name.clone(), json!(value.to_string())))
        .collect();
    facts.put("results", r, &Value::Object(results));
    for name in DRAFTS {
        let text = workplace.read(&format!("out/compliance/{name}")).replace('\\', "");
        facts.put("run id", name, &json!(between(&text, " Run ", ",")));
        facts.put("config hash", name, &json!(between(&text, ", config ", ",")));
        facts.put("version", name, &json!(between(&text, "Made by ForgeLM ", ",")));
        facts.put("outcome", name, &json!(between(&text, ", outcome ", ".\n")));
        facts.put("system", name, &json!(between(&text, ": ", "\n")));
    }
    let text = workplace.read("out/compliance/annex_xi.md").replace('\\', "");
    let counted = report["resource_usage"]["flops"].as_f64().unwrap();
    facts.put("operations", r, &json!(format!("{counted:.3e}")));
    facts.put("operations", DRAFTS[0], &json!(between(&text, "training\n\n- ", " floating-point")));
    let data = between(&text, "; SHA-256 ", "\n");
    facts.put("data digest", DRAFTS[0], &json!(data));
}

/// What stands between two texts, of which the second may be the end.
#[track_caller]
pub(crate) fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = text.split_once(from).unwrap_or_else(|| panic!("no `{from}` in:\n{text}")).1;
    rest.split_once(to).map_or(rest, |(found, _)| found)
}

fn property<'a>(component: &'a Value, name: &str) -> &'a Value {
    let rows = component["properties"].as_array().unwrap();
    &rows.iter().find(|row| row["name"] == format!("forgelm:{name}")).unwrap()["value"]
}

fn add_bom(facts: &mut Facts, bom: &Value) {
    let b = LISTS[0];
    let (model, base, data) =
        (&bom["metadata"]["component"], &bom["components"][0], &bom["components"][1]);
    for (fact, name) in [
        ("run id", "run_id"),
        ("config hash", "config_hash"),
        ("outcome", "outcome"),
        ("method", "adapter_method"),
        ("trainer", "trainer_type"),
    ] {
        facts.put(fact, b, property(model, name));
    }
    facts.put("version", b, &bom["metadata"]["tools"]["components"][0]["version"]);
    facts.put("time", b, &bom["metadata"]["timestamp"]);
    facts.put("provider name", b, &bom["metadata"]["manufacturer"]["name"]);
    facts.put("system", b, &model["name"]);
    facts.put("purpose", b, &model["description"]);
    facts.put("base model", b, &base["name"]);
    facts.put("base digest", b, &base["hashes"][0]["content"]);
    facts.put("data set", b, &data["name"]);
    facts.put("data digest", b, &data["hashes"][0]["content"]);
    facts.put("data digest", b, &data["components"][0]["hashes"][0]["content"]);
    let rows = property(data, "rows").as_str().unwrap();
    facts.put("rows", b, &json!(rows.parse::<u64>().unwrap()));
    let metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"].as_array();
    let metrics: Map<String, Value> = metrics
        .unwrap()
        .iter()
        .map(|row| (row["type"].as_str().unwrap().to_owned(), row["value"].clone()))
        .collect();
    facts.put("results", b, &Value::Object(metrics));
    let digests: Map<String, Value> = model["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            (file["name"].as_str().unwrap().to_owned(), file["hashes"][0]["content"].clone())
        })
        .collect();
    facts.put("model files", b, &Value::Object(digests));
}

fn add_spdx(facts: &mut Facts, spdx: &Value) {
    let s = LISTS[1];
    let graph = spdx["@graph"].as_array().unwrap();
    let of = |end: &str| {
        let is_it = |e: &&Value| e["spdxId"].as_str().is_some_and(|id| id.ends_with(end));
        graph.iter().find(is_it).unwrap()
    };
    let (model, base, data) = (of("#model"), of("#base-model"), of("#data-0"));
    facts.put("provider name", s, &of("#agent")["name"]);
    facts.put("system", s, &model["name"]);
    facts.put("purpose", s, &model["ai_informationAboutApplication"]);
    facts.put("base model", s, &base["name"]);
    facts.put("base digest", s, &base["verifiedUsing"][0]["hashValue"]);
    facts.put("data set", s, &data["name"]);
    facts.put("data digest", s, &data["verifiedUsing"][0]["hashValue"]);
    facts.put("data digest", s, &of("#data-0-file-0")["verifiedUsing"][0]["hashValue"]);
    facts.put("rows", s, &data["dataset_datasetSize"]);
    facts.put("collection", s, &data["dataset_dataCollectionProcess"]);
    let entries = |name: &str| -> Map<String, Value> {
        let rows = model[name].as_array().unwrap().iter();
        rows.map(|row| (row["key"].as_str().unwrap().to_owned(), row["value"].clone())).collect()
    };
    facts.put("results", s, &Value::Object(entries("ai_metric")));
    facts.put("trainer", s, &entries("ai_hyperparameter")["trainer_type"]);
    let files =
        graph.iter().filter(|e| e["spdxId"].as_str().is_some_and(|id| id.contains("#model-file-")));
    let digests: Map<String, Value> = files
        .map(|e| {
            (e["name"].as_str().unwrap().to_owned(), e["verifiedUsing"][0]["hashValue"].clone())
        })
        .collect();
    facts.put("model files", s, &Value::Object(digests));
}

#[test]
fn lists_and_drafts_are_there_signed_and_about_the_files_that_lie_there() {
    let workplace = complete();
    workplace.run();
    for name in LISTS.iter().chain(&DRAFTS) {
        workplace.forgelm(&["verify-signature", &format!("out/compliance/{name}")]).expect_code(0);
    }
    let bom = document(&workplace, "out/compliance/mlbom.cdx.json");
    let files = bom["metadata"]["component"]["components"].as_array().unwrap();
    let integrity = document(&workplace, "out/final_model/model_integrity.json");
    assert_eq!(files.len(), integrity["artifacts"].as_array().unwrap().len());
    for file in files {
        let path = workplace.path("out").join(file["name"].as_str().unwrap());
        let digest = forgelm_artifact::hash::sha256_file(&path).unwrap().to_string();
        assert_eq!(file["hashes"][0]["content"], digest, "{}", path.display());
    }
    // Rows are conversations: their columns are known down to the members of a message.
    let croissant = document(&workplace, "out/compliance/croissant.json");
    let messages = &croissant["recordSet"][0]["field"][0];
    assert_eq!((&messages["name"], &messages["repeated"]), (&json!("messages"), &json!(true)));
    let inner = messages["subField"].as_array().unwrap();
    let inner: Vec<_> = inner.iter().map(|field| (&field["name"], &field["dataType"])).collect();
    let text = json!("sc:Text");
    assert_eq!(inner, [(&json!("role"), &text), (&json!("content"), &text)]);
    let draft = workplace.read("out/compliance/annex_xi.md");
    assert!(draft.contains("- license: Apache\\-2\\.0\n"), "{draft}");
    assert!(draft.contains("\\: not above one third\\,"), "{draft}");
    assert!(draft.contains("- not provided: `compliance.gpai.tasks`"), "{draft}");
    // Without the section there are no drafts, and those of before are gone.
    let config = workplace.read("run.yaml");
    let from = config.find("  gpai:\n").unwrap();
    let to = config.find("risk_assessment:\n").unwrap();
    workplace.write("run.yaml", &(config[..from].to_owned() + &config[to..]));
    workplace.edit_config("output_dir: out", "output_dir: out2");
    workplace.run();
    assert!(workplace.path("out2/compliance/mlbom.cdx.json").exists());
    for name in DRAFTS {
        assert!(!workplace.path(&format!("out2/compliance/{name}")).exists(), "{name}");
    }
}

#[test]
fn hostile_answers_stay_values_in_lists_and_text_in_drafts() {
    let workplace = complete();
    let text =
        "\"Acme\\\"}\\n# Approved\\n<script>alert(1)</script> [x](javascript:y) | `z` \\u202e\"";
    let plain = "Acme\"}\n# Approved\n<script>alert(1)</script> [x](javascript:y) | `z` \u{202e}";
    for key in [
        "provider_name: Acme GmbH",
        "license: Apache-2.0",
        "collection_method: exported from the ticket system",
    ] {
        let name = key.split(':').next().unwrap();
        workplace.edit_config(key, &format!("{name}: {text}"));
    }
    workplace.run();
    let bom = document(&workplace, "out/compliance/mlbom.cdx.json");
    assert_eq!(bom["metadata"]["manufacturer"]["name"], plain);
    assert_eq!(bom["metadata"]["component"]["licenses"][0]["license"]["name"], plain);
    let croissant = document(&workplace, "out/compliance/croissant.json");
    assert_eq!(croissant["rai:dataCollection"], plain);
    for name in DRAFTS {
        let text = workplace.read(&format!("out/compliance/{name}"));
        assert!(!text.contains("\n# Approved") && !text.contains(" <script"), "{text}");
        assert!(!text.contains("](java") && !text.contains('\u{202e}'), "{text}");
    }
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}
