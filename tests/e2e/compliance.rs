//! The documents of a run: what they say, that none contradicts another, and what refuses to start.

use crate::published::{self, between};
use crate::support::Workplace;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

const ANNEX: &str = "out/compliance/annex_iv_metadata.json";

/// Every answer that Annex IV asks people for.
pub const COMPLETE: &str = "\
compliance:
  provider_name: Acme GmbH
  provider_contact: ai@acme.example
  system_name: Support Assistant
  intended_purpose: Answer customers about their orders
  known_limitations: No medical or legal advice
  system_version: 1.0.0
  risk_classification: limited-risk
  language: [en]
  annex_iv:
    relation_to_previous_versions: the first version
    interactions: a web service in front of it, and the order database
    forms_of_supply: [a service on the provider's own machines]
    intended_hardware: one processor with AVX-512 and 4 GiB of memory
    product: 'not applicable: it is no component of a product'
    user_interface: a text field in a web page
    instructions:
      expected_accuracy: as measured on held-out rows
      explanations: 'not applicable: answers are texts for a person to read'
      output_interpretation: a person reads every answer before it is sent
      lifetime_and_maintenance: two years, retrained each quarter
      log_collection: the web service keeps requests for six months
    design:
      general_logic: a language model that continues a conversation
      choices:
        - choice: a small model
          rationale: it runs on site
      intended_persons: staff of customer support
      classification_choices: 'not applicable: nothing is classified'
      optimized_for: the likelihood of answers that staff wrote
      expected_output: short polite answers
      trade_offs: a smaller model answers faster and knows less
    data_sheet:
      characteristics: questions and answers in English
      selection: all closed tickets of one year
      cleaning: names and numbers were removed
    human_oversight: staff approve each answer
    interpretation_measures: the source of each answer is shown
    predetermined_changes:
      - change: new tickets each quarter
        safeguard: the same evaluation
    testing:
      procedures: held-out rows, and a review by staff
      robustness: misspelled questions
      discriminatory_impact: questions in the names of several groups
      responsible: A. Example, head of quality
    cybersecurity_measures: [access only from the internal network]
    group_performance: measured for native and other speakers
    unintended_outcomes: [wrong facts about an order]
    input_specification: English text of at most 500 characters
    metrics_rationale:
      - metric: eval_loss
        rationale: it is how likely staff's own answers are
    residual_risk: a person reads every answer
    changes: ['none: the first version']
    other_solutions: internal rules after ISO/IEC 42001
    declaration_of_conformity: 'not applicable: the tier asks for none'
    post_market_monitoring: a monthly sample is reviewed
  gpai:
    license: Apache-2.0
    base_training_flops: 1e20
risk_assessment:
  intended_use: customer support
  foreseeable_misuse: [legal advice]
  risk_category: limited-risk
  mitigation_measures: [a person reads every answer]
  vulnerable_groups_considered: true
";

const GOVERNANCE: &str = "  governance:
    collection_method: exported from the ticket system
    annotation_process: answers that staff wrote
    known_biases: customers of one country
";

pub(crate) fn complete() -> Workplace {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace
        .write("run.yaml", &format!("{config}{GOVERNANCE}{COMPLETE}webhook: {{timeout: 5}}\n"));
    workplace
}

pub(crate) fn document(workplace: &Workplace, name: &str) -> Value {
    serde_json::from_str(&workplace.read(name)).unwrap()
}

#[test]
fn a_run_with_every_answer_starts_strictly_and_verifies_point_by_point() {
    let workplace = complete();
    let ran = workplace.forgelm(&[
        "--config",
        "run.yaml",
        "--strict-compliance",
        "--output-format",
        "json",
    ]);
    let result = ran.expect_code(0).json();
    assert_eq!(result["compliance_exported"], true);
    let ran = workplace.forgelm(&["verify-annex-iv", ANNEX, "--strict", "--output-format", "json"]);
    let found = ran.expect_code(0).json();
    assert_eq!(found["success"], true);
    assert_eq!(found["missing_fields"], json!([]));
    assert_eq!(found["manifest_hash_actual"], found["manifest_hash_expected"]);
    assert_eq!(found["signature"]["state"], "valid");
    let points = found["points"].as_object().unwrap();
    assert_eq!(points.len(), 23);
    let with = |word: &str| points.values().filter(|verdict| **verdict == word).count();
    assert_eq!((with("evidence"), with("statement"), with("absent")), (9, 14, 0), "{points:?}");
    for check in [
        &["verify-bundle", "out"][..],
        &["verify-integrity", "out/final_model"],
        &["verify-signature", ANNEX],
    ] {
        workplace.forgelm(check).expect_code(0);
    }
    let events: Vec<Value> = workplace.json_lines("out/audit_log.jsonl");
    let event = |name: &str| events.iter().find(|event| event["event"] == name);
    assert_eq!(event("compliance.governance_exported").unwrap()["dataset_count"], 1);
    let missing = event("compliance.governance_section_missing").unwrap();
    assert_eq!(missing["expected_path"], "out/data_audit_report.json");
    assert_eq!(event("compliance.artifacts_exported").unwrap()["governance_ok"], true);
}

#[test]
fn strict_compliance_refuses_before_anything_is_written_and_names_every_key() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let some =
        "compliance: {provider_name: Acme, annex_iv: {interactions: TBD, product: none here}}\n";
    workplace.write("run.yaml", &(config + some));
    for mode in [&["--strict-compliance"][..], &["--strict-compliance", "--dry-run"]] {
        let args = [&["--config", "run.yaml"], mode].concat();
        let ran = workplace
            .forgelm(&args)
            .expect_code(1)
            .expect_stderr("19 points of the technical documentation")
            .expect_stderr("1(b): how the system interacts")
            .expect_stderr("`compliance.annex_iv.interactions`")
            .expect_stderr("`compliance.system_name`")
            .expect_stderr("nothing was started");
        assert!(!ran.stderr.contains("1(f)"), "{}", ran.stderr);
        assert!(!workplace.path("out").exists() && !workplace.path("home/.config").exists());
    }
    let json = ["--config", "run.yaml", "--strict-compliance", "--output-format", "json"];
    let result = workplace.forgelm(&json).expect_code(1).json();
    assert_eq!(result["success"], false);
    let open = result["open_points"].as_array().unwrap();
    assert_eq!(open.len(), 19);
    assert_eq!(
        (&open[1]["point"], &open[1]["keys"]),
        (&json!("1(b)"), &json!(["compliance.annex_iv.interactions"]))
    );
    for flag in ["--merge", "--fit-check"] {
        workplace.forgelm(&["--config", "run.yaml", "--strict-compliance", flag]).expect_code(2);
    }
    // Without the flag the run goes, and its document says what is open.
    workplace.run();
    let annex = document(&workplace, ANNEX);
    assert_eq!(annex["points"]["1(b)"]["status"], "not_provided");
    assert_eq!(annex["points"]["1(b)"]["answer"], Value::Null);
    assert_eq!(annex["points"]["1(f)"]["status"], "statement");
    workplace
        .forgelm(&["verify-annex-iv", ANNEX])
        .expect_code(1)
        .expect_stderr("missing: system_identification.system_name")
        .expect_stderr("missing: risk_management");
}

#[test]
fn a_strict_tier_needs_no_flag() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let tier = "compliance: {risk_classification: high-risk}\n";
    workplace.write("run.yaml", &(config + tier));
    // The safety evaluation, which such a tier needs, is asked for first.
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("safety");
    assert!(!workplace.path("out").exists());
}

#[test]
fn without_a_compliance_section_there_is_no_technical_documentation() {
    let workplace = Workplace::new();
    workplace.run();
    assert!(!workplace.path(ANNEX).exists());
    assert!(workplace.path("out/compliance/data_governance_report.json").exists());
    assert!(workplace.path("out/final_model/deployer_instructions.md").exists());
    workplace.forgelm(&["verify-annex-iv", ANNEX]).expect_code(1).expect_stderr("no such file");
}

/// Every place at which a fact stands, as text: JSON and YAML by their members, Markdown by its lines.
pub(crate) struct Facts(BTreeMap<&'static str, Vec<(String, String)>>);

impl Facts {
    fn of(workplace: &Workplace) -> Self {
        let mut facts = Self(BTreeMap::new());
        let read = |name: &str| document(workplace, &format!("out/compliance/{name}"));
        let report = read("compliance_report.json");
        let manifest = read("training_manifest.json");
        let provenance = read("data_provenance.json");
        let risks = read("risk_assessment.json");
        let governance = read("data_governance_report.json");
        let annex = read("annex_iv_metadata.json");
        let yaml = workplace.read("out/compliance/training_manifest.yaml");
        let yaml: Value = serde_yaml::from_str(&yaml).unwrap();
        let card = workplace.read("out/final_model/README.md");
        let instructions =
            workplace.read("out/final_model/deployer_instructions.md").replace('\\', "");
        let integrity = document(workplace, "out/final_model/model_integrity.json");
        let events = workplace.json_lines("out/audit_log.jsonl");
        let event = |name: &str| {
            events.iter().rev().find(|event| event["event"] == name).cloned().unwrap_or_default()
        };
        let (started, completed) = (event("training.started"), event("pipeline.completed"));
        let documents: [(&'static str, &Value); 8] = [
            ("compliance_report.json", &report),
            ("training_manifest.json", &manifest),
            ("training_manifest.yaml", &yaml),
            ("data_provenance.json", &provenance),
            ("risk_assessment.json", &risks),
            ("data_governance_report.json", &governance),
            ("annex_iv_metadata.json", &annex),
            ("audit_log.jsonl", &started),
        ];
        let of = |name: &str| documents.iter().find(|(other, _)| *other == name).unwrap().1;
        let mut add = |fact: &'static str, places: &[(&str, &str)]| {
            for (name, pointer) in places {
                let value = of(name).pointer(pointer).unwrap_or_else(|| panic!("{name}{pointer}"));
                facts.put(fact, name, value);
            }
        };
        let (r, a, j, y) = (
            "compliance_report.json",
            "annex_iv_metadata.json",
            "training_manifest.json",
            "training_manifest.yaml",
        );
        let (d, g, k) =
            ("data_provenance.json", "data_governance_report.json", "risk_assessment.json");
        add(
            "run id",
            &[
                (r, "/run_id"),
                (j, "/run_id"),
                (a, "/run_id"),
                (g, "/run_id"),
                ("audit_log.jsonl", "/run_id"),
            ],
        );
        add("operator", &[(r, "/operator"), ("audit_log.jsonl", "/operator")]);
        add("config hash", &[(r, "/config_hash"), (j, "/config_hash"), (a, "/config_hash")]);
        add(
            "version",
            &[
                (r, "/forgelm_version"),
                (j, "/forgelm_version"),
                (y, "/forgelm_version"),
                (a, "/technical_documentation/forgelm_version"),
                (a, "/points/1(c)/answer/program/version"),
            ],
        );
        add(
            "time",
            &[
                (r, "/generated_at"),
                (j, "/generated_at"),
                (y, "/generated_at"),
                (g, "/generated_at"),
                (a, "/technical_documentation/generated_at"),
                (r, "/data_provenance/fingerprint/timestamp"),
            ],
        );
        add(
            "base model",
            &[
                (r, "/model_lineage/base_model"),
                (j, "/base_model"),
                (y, "/base_model"),
                (a, "/system_components/model_lineage/base_model"),
                (a, "/points/2(a)/answer/stages/0/name"),
            ],
        );
        add(
            "base digest",
            &[
                (r, "/model_lineage/base_model_revision/sha256"),
                (a, "/points/2(a)/answer/stages/0/sha256"),
                (a, "/points/2(a)/answer/model_lineage/base_model_revision/sha256"),
            ],
        );
        add(
            "method",
            &[
                (r, "/model_lineage/adapter_method"),
                (j, "/adapter_method"),
                (y, "/adapter_method"),
                (a, "/points/2(a)/answer/stages/2/method"),
            ],
        );
        add(
            "lineage",
            &[
                (r, "/model_lineage"),
                (a, "/system_components/model_lineage"),
                (a, "/points/2(a)/answer/model_lineage"),
            ],
        );
        add(
            "parameters",
            &[(r, "/training_parameters"), (a, "/system_components/training_parameters")],
        );
        add(
            "trainer",
            &[(r, "/training_parameters/trainer_type"), (j, "/trainer_type"), (y, "/trainer_type")],
        );
        add("epochs", &[(r, "/training_parameters/epochs"), (j, "/epochs"), (y, "/epochs")]);
        add("provenance", &[(r, "/data_provenance"), (d, ""), (a, "/data_governance")]);
        add(
            "data set",
            &[(d, "/primary_dataset"), (j, "/dataset"), (y, "/dataset"), (g, "/primary_dataset")],
        );
        add(
            "data digest",
            &[
                (d, "/fingerprint/sha256"),
                (g, "/data_sha256/0"),
                (a, "/points/2(d)/answer/data_files/0/sha256"),
                (a, "/points/2(a)/answer/stages/1/sha256/0"),
            ],
        );
        add("rows", &[(d, "/fingerprint/rows"), (a, "/points/2(d)/answer/data_files/0/rows")]);
        add(
            "metrics",
            &[
                (r, "/evaluation_results/metrics"),
                (a, "/performance_metrics"),
                (a, "/points/2(g)/answer/metrics"),
                (a, "/points/4/answer/metrics"),
            ],
        );
        add("rounded metrics", &[(j, "/final_metrics"), (y, "/final_metrics")]);
        add(
            "usage",
            &[
                (r, "/resource_usage"),
                (a, "/computational_resources"),
                (a, "/points/2(c)/answer/computational_resources"),
            ],
        );
        add("outcome", &[(r, "/outcome"), (a, "/outcome")]);
        add("gates", &[(r, "/gates")]);
        add(
            "tier",
            &[
                (r, "/annex_iv/risk_classification"),
                (a, "/system_identification/risk_classification"),
                (a, "/provider_metadata/risk_classification"),
                (k, "/risk_category"),
                (r, "/risk_assessment/risk_category"),
            ],
        );
        add(
            "risks",
            &[
                (r, "/risk_assessment"),
                (k, ""),
                (a, "/risk_management"),
                (a, "/points/5/answer/risk_assessment"),
            ],
        );
        add("provider", &[(r, "/annex_iv"), (a, "/provider_metadata")]);
        add(
            "purpose",
            &[
                (a, "/intended_purpose"),
                (a, "/system_identification/intended_purpose"),
                (a, "/points/1(a)/answer/intended_purpose"),
                (r, "/annex_iv/intended_purpose"),
            ],
        );
        add(
            "governance",
            &[(g, "/governance/collection_method"), (a, "/points/2(d)/answer/collection_method")],
        );
        facts.put("metrics", "audit_log.jsonl", &completed["metrics_summary"]);
        facts.put("run id", "README.md", &json!(between(&card, "Run `", "`")));
        facts.put("config hash", "README.md", &json!(between(&card, "config `", "`")));
        facts.put("base model", "README.md", &json!(between(&card, "| base model | ", " |")));
        facts.put(
            "base digest",
            "README.md",
            &json!(between(&card, "| base model revision | ", " |")),
        );
        facts.put("method", "README.md", &json!(between(&card, "| method | ", " |")));
        facts.put("trainer", "README.md", &json!(between(&card, "| trainer | ", " |")));
        facts.put("data set", "README.md", &json!(between(&card, "| data set | ", " |")));
        facts.put("purpose", "README.md", &json!(between(&card, "Intended purpose: ", "\n")));
        let i = "deployer_instructions.md";
        facts.put("run id", i, &json!(between(&instructions, "Run ", ",")));
        facts.put("config hash", i, &json!(between(&instructions, "config ", ",")));
        facts.put("version", i, &json!(between(&instructions, "Made by ForgeLM ", " ")));
        facts.put("version", "README.md", &json!(between(&card, "Made by ForgeLM ", ".\n")));
        facts.put("base model", i, &json!(between(&instructions, "| Base model | ", " |")));
        facts.put("method", i, &json!(between(&instructions, "| Fine-tuning method | ", " |")));
        facts.put("purpose", i, &json!(between(&instructions, "## 2. Intended purpose\n\n", "\n")));
        // A metric to four places, in every document that has it.
        let loss = |value: &Value| json!(format!("{:.4}", value.as_f64().unwrap()));
        facts.put("loss", r, &loss(&report["evaluation_results"]["metrics"]["eval_loss"]));
        facts.put("loss", j, &loss(&manifest["final_metrics"]["eval_loss"]));
        facts.put("loss", "README.md", &json!(between(&card, "| eval_loss | ", " |")));
        facts.put("loss", i, &json!(between(&instructions, "| eval_loss | ", " |")));
        published::add_facts(&mut facts, workplace);
        // Digests of files, wherever they are named, are those of the files.
        let rows = annex["points"].as_object().unwrap().values();
        let named = rows.flat_map(|row| row["evidence"].as_array().unwrap());
        let listed = integrity["artifacts"].as_array().unwrap().iter().map(|row| {
            json!({"file": format!("final_model/{}", row["file"].as_str().unwrap()), "sha256": row["sha256"]})
        });
        for row in named.cloned().chain(listed).filter(|row| row.get("sha256").is_some()) {
            let file = row["file"].as_str().unwrap();
            let path = workplace.path("out").join(file);
            let actual = forgelm_artifact::hash::sha256_file(&path).unwrap().to_string();
            if json!(actual) != row["sha256"] {
                facts.put("digest", file, &json!(actual));
                facts.put("digest", "its name in a document", &row["sha256"]);
            }
        }
        facts
    }

    pub(crate) fn put(&mut self, fact: &'static str, place: &str, value: &Value) {
        self.0.entry(fact).or_default().push((place.to_owned(), value.to_string()));
    }

    /// Facts that have more than one value.
    fn contradictions(&self) -> Vec<&'static str> {
        let differ =
            |places: &&Vec<(String, String)>| places.iter().any(|place| place.1 != places[0].1);
        self.0.iter().filter(|(_, places)| differ(places)).map(|(fact, _)| *fact).collect()
    }
}

#[test]
fn no_two_documents_of_a_run_contradict_each_other() {
    let workplace = complete();
    workplace.run();
    let facts = Facts::of(&workplace);
    assert_eq!(facts.contradictions(), [] as [&str; 0]);
    let n_places: usize = facts.0.values().map(Vec::len).sum();
    assert!(facts.0.len() >= 34 && n_places >= 168, "{} facts in {n_places} places", facts.0.len());
    // The check sees a change of any of them.
    let changes: [(&str, &str, &str, &str); 9] = [
        ("compliance/compliance_report.json", "\"lora_r\": 4", "\"lora_r\": 5", "parameters"),
        (
            "compliance/training_manifest.json",
            "\"trainer_type\": \"sft\"",
            "\"trainer_type\": \"dpo\"",
            "trainer",
        ),
        (
            "compliance/training_manifest.yaml",
            "dataset: data.jsonl",
            "dataset: other.jsonl",
            "data set",
        ),
        (
            "compliance/data_provenance.json",
            "\"shuffle\": true",
            "\"shuffle\": false",
            "provenance",
        ),
        ("compliance/risk_assessment.json", "limited-risk", "minimal-risk", "tier"),
        ("compliance/data_governance_report.json", "ticket system", "web", "governance"),
        (
            "compliance/annex_iv_metadata.json",
            "\"outcome\": \"promoted\"",
            "\"outcome\": \"staged\"",
            "outcome",
        ),
        ("final_model/README.md", "| trainer | sft |", "| trainer | kto |", "trainer"),
        (
            "final_model/deployer_instructions.md",
            "Answer customers about",
            "Advise customers about",
            "purpose",
        ),
    ];
    for (file, from, to, fact) in changes.into_iter().chain(published::CHANGES) {
        let name = format!("out/{file}");
        let good = workplace.read(&name);
        assert!(good.contains(from), "{name} has no {from}");
        workplace.write(&name, &good.replacen(from, to, 1));
        let found = Facts::of(&workplace).contradictions();
        assert!(found.contains(&fact), "{name}: {found:?}");
        workplace.write(&name, &good);
    }
    assert_eq!(Facts::of(&workplace).contradictions(), [] as [&str; 0]);
}

#[test]
fn the_report_has_the_webhook_without_its_address() {
    let workplace = complete();
    workplace.run();
    let report = document(&workplace, "out/compliance/compliance_report.json");
    assert_eq!(report["webhook_config"]["timeout"], 5);
    assert!(report["webhook_config"].get("url").is_none());
    assert!(report.get("monitoring").is_none(), "not enabled");
    assert!(report["annex_iv"].get("annex_iv").is_none());
}

#[test]
fn the_data_audit_is_taken_in_only_when_it_is_about_this_data() {
    let workplace = complete();
    workplace.forgelm(&["audit", "data.jsonl", "--output", "out"]).expect_code(0);
    workplace.run();
    let report = document(&workplace, "out/compliance/data_governance_report.json");
    assert_eq!(report["data_audit_inlined"], true);
    assert_eq!(report["data_audit"]["total_samples"], 24);
    assert_eq!(report["data_audit"]["inputs"][0]["sha256"], report["data_sha256"][0]);
    let (train, validation) = (&report["splits"]["train"], &report["splits"]["validation"]);
    assert_eq!(
        train["sample_count"].as_u64().unwrap() + validation["sample_count"].as_u64().unwrap(),
        24
    );
    assert_eq!(train["columns"], json!(["messages"]));
    // Lengths are of characters: every text is a question of two digits at most and its answer.
    let lengths: Vec<u64> = workplace
        .json_lines("data.jsonl")
        .iter()
        .map(|row| {
            let said = |i: usize| row["messages"][i]["content"].as_str().unwrap().chars().count();
            (said(0) + 1 + said(1)) as u64
        })
        .collect();
    let of = |key: &str, split: &Value| split["text_length"][key].as_u64().unwrap();
    assert_eq!(of("max", train).max(of("max", validation)), *lengths.iter().max().unwrap());
    assert_eq!(of("min", train).min(of("min", validation)), *lengths.iter().min().unwrap());
    let log = workplace.read("out/audit_log.jsonl");
    assert!(!log.contains("compliance.governance_section_missing"));
    // The data changes, and the report of the audit is about what was.
    let other = complete();
    other.forgelm(&["audit", "data.jsonl", "--output", "out"]).expect_code(0);
    let rows = other.read("data.jsonl");
    other.write("data.jsonl", &(rows + &crate::support::conversation(99) + "\n"));
    other.run();
    let report = document(&other, "out/compliance/data_governance_report.json");
    assert_eq!(report["data_audit_inlined"], false);
    assert!(report.get("data_audit").is_none());
    assert!(report["data_audit_note"].as_str().unwrap().contains("other data"), "{report}");
    assert!(other.read("out/audit_log.jsonl").contains("compliance.governance_section_missing"));
}

#[test]
fn several_rows_on_a_line_are_counted_and_their_lengths_are_not_guessed() {
    let workplace = complete();
    let rows: Vec<String> = (0..24).map(crate::support::conversation).collect();
    workplace.write("data.json", &format!("[{}]", rows.join(", ")));
    workplace.edit_config("dataset_name_or_path: data.jsonl", "dataset_name_or_path: data.json");
    workplace.run();
    let report = document(&workplace, "out/compliance/data_governance_report.json");
    let train = &report["splits"]["train"];
    assert_eq!(train["sample_count"], 21);
    assert!(train.get("text_length").is_none(), "which rows are held out cannot be told: {train}");
    workplace.edit_config(
        "dataset_name_or_path: data.json\n",
        "dataset_name_or_path: data.json\n  validation_split: 0.0\n",
    );
    workplace.edit_config("output_dir: out", "output_dir: out2");
    workplace.run();
    let report = document(&workplace, "out2/compliance/data_governance_report.json");
    let train = &report["splits"]["train"];
    assert_eq!((&train["sample_count"], &train["text_length"]["min"]), (&json!(24), &json!(37)));
}

#[test]
fn the_second_version_says_what_changed_since_the_first() {
    let workplace = complete();
    workplace.run();
    workplace.edit_config("output_dir: out", "output_dir: out2");
    workplace.edit_config(
        "  system_version: 1.0.0",
        "  system_version: 1.1.0\n  previous_manifest: out/compliance/annex_iv_metadata.json",
    );
    workplace.edit_config("  r: 4", "  r: 2");
    workplace.write("declaration.txt", "declared");
    workplace.edit_config(
        "    declaration_of_conformity:",
        "    declaration_of_conformity_file: declaration.txt\n    declaration_of_conformity:",
    );
    let plan = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0).stdout;
    assert!(plan.contains(ANNEX) && plan.contains("declaration.txt"), "{plan}");
    workplace.run();
    let annex = document(&workplace, "out2/compliance/annex_iv_metadata.json");
    let point = &annex["points"]["6"];
    assert_eq!(point["status"], "evidence");
    assert_eq!(point["answer"]["previous"]["signature"], "valid");
    assert_eq!(point["answer"]["previous"]["system_version"], "1.0.0");
    let changes = point["answer"]["changes_since"].as_array().unwrap();
    let change = |field: &str| changes.iter().find(|change| change["field"] == field);
    let rank = change("system_components.training_parameters.lora_r").unwrap();
    assert_eq!((&rank["before"], &rank["after"]), (&json!(4), &json!(2)));
    assert!(change("system_identification.system_version").is_some());
    assert_eq!(annex["points"]["8"]["status"], "evidence");
    workplace
        .forgelm(&["verify-annex-iv", "out2/compliance/annex_iv_metadata.json", "--strict"])
        .expect_code(0);
    // What was changed after it was signed is no source of anything.
    workplace.edit_config("output_dir: out2", "output_dir: out3");
    let good = workplace.read(ANNEX);
    workplace.write(ANNEX, &good.replacen("\"lora_r\": 4", "\"lora_r\": 8", 1));
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(6)
        .expect_stderr("`compliance.previous_manifest`");
    fs::remove_file(workplace.path("declaration.txt")).unwrap();
    workplace.write(ANNEX, &good);
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("`compliance.annex_iv.declaration_of_conformity_file`");
    assert!(!workplace.path("out3").exists());
}

#[test]
fn a_changed_or_stripped_documentation_is_not_accepted() {
    let workplace = complete();
    workplace.run();
    let good = workplace.read(ANNEX);
    workplace.write(ANNEX, &good.replacen("Acme GmbH", "Acme Ltd.", 1));
    let ran =
        workplace.forgelm(&["verify-annex-iv", ANNEX, "--output-format", "json"]).expect_code(6);
    let found = ran.json();
    assert_eq!(found["success"], false);
    assert_eq!(found["signature"]["state"], "subject_mismatch");
    assert_ne!(found["manifest_hash_actual"], found["manifest_hash_expected"]);
    workplace.write(ANNEX, &good);
    let envelope = format!("{ANNEX}.dsse.json");
    fs::rename(workplace.path(&envelope), workplace.path("kept")).unwrap();
    workplace
        .forgelm(&["verify-annex-iv", ANNEX])
        .expect_code(1)
        .expect_stderr("says that there was one");
    let ran = workplace.forgelm(&["verify-annex-iv", ANNEX, "--allow-unsigned"]).expect_code(0);
    assert!(ran.stdout.starts_with("OK: ") && ran.stderr.contains("warning"), "{}", ran.stderr);
    fs::rename(workplace.path("kept"), workplace.path(&envelope)).unwrap();
    let key = "home/.config/forgelm/signing.key.pub";
    workplace.forgelm(&["verify-annex-iv", ANNEX, "--key", key]).expect_code(0);
    workplace.forgelm(&["keygen", "--out", "other.key"]).expect_code(0);
    workplace.forgelm(&["verify-annex-iv", ANNEX, "--key", "other.key.pub"]).expect_code(1);
    workplace
        .forgelm(&["verify-annex-iv", "out", "--pipeline"])
        .expect_code(1)
        .expect_stderr("pipeline_manifest.json: missing");
    workplace.forgelm(&["verify-annex-iv", "out"]).expect_code(1);
}

#[test]
fn documents_of_a_config_alone_are_marked_and_no_verifier_takes_them_for_a_run() {
    let workplace = complete();
    let ran = workplace.forgelm(&[
        "--config",
        "run.yaml",
        "--compliance-export",
        "docs",
        "--output-format",
        "json",
    ]);
    let result = ran.expect_code(0).json();
    assert_eq!((&result["success"], &result["output_dir"]), (&json!(true), &json!("docs")));
    let files: Vec<&str> =
        result["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert_eq!(
        files,
        [
            "docs/annex_iv_metadata.json",
            "docs/annex_xi.md",
            "docs/compliance_report.json",
            "docs/config.json",
            "docs/data_provenance.json",
            "docs/deployer_instructions.md",
            "docs/downstream.md",
            "docs/gpai_summary.md",
            "docs/risk_assessment.json",
            "docs/training_manifest.json",
            "docs/training_manifest.yaml",
        ]
    );
    for name in ["annex_iv_metadata.json", "compliance_report.json", "training_manifest.json"] {
        assert_eq!(document(&workplace, &format!("docs/{name}"))["standalone"], true, "{name}");
    }
    assert!(workplace.read("docs/training_manifest.yaml").starts_with("standalone: true\n"));
    assert!(workplace.read("docs/deployer_instructions.md").contains("There was no training run"));
    let report = document(&workplace, "docs/compliance_report.json");
    assert!(report.get("run_id").is_none() && report.get("outcome").is_none(), "{report}");
    let digest = forgelm_artifact::hash::sha256_file(&workplace.path("data.jsonl")).unwrap();
    assert_eq!(report["data_provenance"]["fingerprint"]["sha256"], digest.to_string());
    assert!(!workplace.path("out").exists() && !workplace.path("home/.config").exists());
    workplace
        .forgelm(&["verify-annex-iv", "docs/annex_iv_metadata.json", "--allow-unsigned"])
        .expect_code(1)
        .expect_stderr("missing: performance_metrics")
        .expect_stderr("made from a config alone");
    workplace.forgelm(&["verify-bundle", "docs"]).expect_code(1);
}

#[test]
fn an_export_overwrites_nothing_and_needs_something_to_say() {
    let workplace = complete();
    let export =
        |dir: &str| workplace.forgelm(&["--config", "run.yaml", "--compliance-export", dir]);
    workplace.write("used/annex_iv_metadata.json", "{}");
    export("used").expect_code(1).expect_stderr("not empty");
    export("data.jsonl").expect_code(1);
    export("model/docs").expect_code(1).expect_stderr("lies in the input");
    assert_eq!(workplace.read("used/annex_iv_metadata.json"), "{}");
    workplace
        .forgelm(&["--config", "run.yaml", "--compliance-export", "docs", "--dry-run"])
        .expect_code(2);
    workplace.edit_config("dataset_name_or_path: data.jsonl", "dataset_name_or_path: ./gone.jsonl");
    export("docs").expect_code(1).expect_stderr("gone.jsonl");
    let bare = Workplace::new();
    bare.forgelm(&["--config", "run.yaml", "--compliance-export", "docs"])
        .expect_code(1)
        .expect_stderr("no `compliance` section");
    assert!(!workplace.path("docs").exists() && !bare.path("docs").exists());
}

/// The run is finished but for its documents, whose folder cannot be made.
#[test]
fn an_export_that_fails_is_told_and_fails_only_a_strict_run() {
    let workplace = complete();
    workplace.run();
    fs::remove_dir_all(workplace.path("out/compliance")).unwrap();
    workplace.write("out/compliance", "in the way");
    let args = ["--config", "run.yaml", "--resume", "--output-format", "json"];
    let ran = workplace.forgelm(&args).expect_code(0).expect_stderr("its evidence is not complete");
    let result = ran.json();
    assert_eq!((&result["success"], &result["compliance_exported"]), (&json!(true), &json!(false)));
    assert!(result["export_error"].as_str().unwrap().contains("compliance"), "{result}");
    let events = workplace.json_lines("out/audit_log.jsonl");
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(
        names[names.len() - 2..],
        ["compliance.artifacts_export_failed", "pipeline.completed"]
    );
    let strict = [&args[..], &["--strict-compliance"]].concat();
    let ran = workplace.forgelm(&strict).expect_code(2);
    assert_eq!(ran.json()["success"], false);
    let events = workplace.json_lines("out/audit_log.jsonl");
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names[names.len() - 2..], ["compliance.artifacts_export_failed", "pipeline.failed"]);
    assert_ne!(workplace.forgelm(&["verify-bundle", "out"]).code, 0);
    assert!(!workplace.path("out/final_model").exists());
    // Nothing is in the way any more.
    fs::remove_file(workplace.path("out/compliance")).unwrap();
    workplace.forgelm(&strict).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    let ran = workplace.forgelm(&["approvals", "--pending", "--output-dir", "out"]).expect_code(0);
    assert!(!ran.stdout.contains("staging"), "{}", ran.stdout);
}

#[test]
fn hostile_answers_stay_text_in_every_document() {
    let workplace = complete();
    let hostile =
        "\"Acme\\n# Approved\\n<script>alert(1)</script> [x](javascript:y) | `z` \\u202e\"";
    workplace.edit_config("provider_name: Acme GmbH", &format!("provider_name: {hostile}"));
    workplace.edit_config(
        "  known_limitations: No medical or legal advice",
        &format!("  known_limitations: {hostile}"),
    );
    workplace.run();
    let instructions = workplace.read("out/final_model/deployer_instructions.md");
    assert!(
        !instructions.contains("\n# Approved") && !instructions.contains(" <script"),
        "{instructions}"
    );
    assert!(!instructions.contains('\u{202e}'));
    let card = workplace.read("out/final_model/README.md");
    let text = card.split("## Configuration").next().unwrap();
    assert!(
        !text.contains("\n# Approved") && !text.contains("<script") && !text.contains("](java"),
        "{text}"
    );
    let annex = document(&workplace, ANNEX);
    assert!(annex["system_identification"]["provider_name"].as_str().unwrap().contains("<script>"));
    workplace.forgelm(&["verify-annex-iv", ANNEX]).expect_code(0);
}
