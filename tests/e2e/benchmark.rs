//! Benchmarks: as a gate after training, and of a model that is there. The tasks and their numbers are
//! the golden ones of the lm-evaluation-harness.

use crate::support::{Workplace, data_dir};
use serde_json::{Value, json};

const ONLY: [&str; 6] =
    ["--config", "run.yaml", "--benchmark-only", "model", "--output-format", "json"];
const ADAPTER_WITHOUT_BASE: &str =
    r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}"#;
const JSON: [&str; 4] = ["--config", "run.yaml", "--output-format", "json"];

/// A workplace with golden tasks in `tasks/`, and a config that has this gate.
fn workplace(benchmark: &str) -> Workplace {
    let workplace = Workplace::new();
    let golden = data_dir().join("golden/benchmark");
    for task in ["choice", "own_piqa", "own_boolq", "all", "whole", "answer"] {
        for end in ["yaml", "test.jsonl", "train.jsonl", "validation.jsonl"] {
            let name = format!("{task}.{end}");
            if let Ok(text) = std::fs::read_to_string(golden.join(&name)) {
                workplace.write(&format!("tasks/{name}"), &text);
            }
        }
    }
    let config = workplace.read("run.yaml");
    let gate =
        format!("evaluation: {{auto_revert: true, baseline_loss: 99, benchmark: {benchmark}}}\n");
    workplace.write("run.yaml", &(config + &gate));
    workplace
}

fn golden() -> Value {
    let path = data_dir().join("golden/benchmark/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn results(workplace: &Workplace, file: &str) -> Value {
    serde_json::from_str(&workplace.read(file)).unwrap()
}

fn near(found: &Value, wanted: &Value) {
    match (found.as_f64(), wanted.as_f64()) {
        (Some(found), Some(wanted)) => {
            assert!((found - wanted).abs() <= 2e-3 * wanted.abs(), "{found}, {wanted}");
        }
        // Without an error the harness says `N/A`.
        (found, wanted) => assert_eq!((found, wanted), (None, None)),
    }
}

fn assert_metrics(found: &Value, wanted: &Value) {
    let wanted = wanted.as_object().unwrap();
    assert_eq!(found.as_object().unwrap().len(), wanted.len());
    for (name, wanted) in wanted {
        near(&found[name], wanted);
    }
}

#[test]
fn a_model_scores_what_the_harness_says_whatever_the_batch_size() {
    let tasks = "tasks: [tasks/all.yaml, tasks/whole.yaml]";
    let workplace = workplace(&format!("{{{tasks}}}"));
    let ran = workplace.forgelm(&ONLY).expect_code(0).expect_stderr("`whole` has no score");
    let result = ran.json();
    let golden = golden();
    near(&result["benchmark"]["scores"]["all"], &golden["all"]["metrics"]["acc_norm,none"]);
    assert_eq!(result["benchmark"]["average"], result["benchmark"]["scores"]["all"]);
    assert_eq!(result["benchmark"]["scores"].as_object().unwrap().len(), 1);
    assert_eq!((&result["success"], &result["benchmark"]["passed"]), (&json!(true), &json!(true)));
    assert_eq!(result["model_path"], "model");
    assert_eq!(result["results_file"], "benchmark/benchmark_results.json");

    // Beside the model: every metric of every task and of the group.
    let first = results(&workplace, "benchmark/benchmark_results.json");
    assert_metrics(&first["groups"]["all"]["metrics"], &golden["all"]["metrics"]);
    assert_metrics(&first["results"]["whole"]["metrics"], &golden["whole"]["metrics"]);
    assert_metrics(&first["results"]["choice"]["metrics"], &golden["choice"]["metrics"]);
    assert_eq!(first["results"]["choice"]["n_samples"], 14);
    assert_eq!(first["score_metrics"]["all"]["metric"], "acc_norm,none");
    assert_eq!(first["data"].as_array().unwrap().len(), 4);
    assert_eq!(first["data"][0]["files"][0]["sha256"].as_str().unwrap().len(), 64);

    for size in ["1", "3"] {
        let with = format!("{{{tasks}, batch_size: {size}}}");
        workplace.edit_config(&format!("{{{tasks}}}"), &with);
        workplace.forgelm(&ONLY).expect_code(0);
        let now = results(&workplace, "benchmark/benchmark_results.json");
        assert_eq!(now, first, "batch size {size}");
        workplace.edit_config(&with, &format!("{{{tasks}}}"));
    }
}

#[test]
fn a_score_below_the_limit_exits_3_and_too_little_evidence_2() {
    let workplace = workplace("{tasks: [tasks/choice.yaml], min_score: 0.9, output_dir: found}");
    let ran = workplace.forgelm(&ONLY).expect_code(3);
    let result = ran.json();
    assert_eq!((&result["success"], &result["exit_code"]), (&json!(false), &json!(3)));
    let reason = result["failure_reason"].as_str().unwrap();
    assert!(reason.contains("is below `evaluation.benchmark.min_score` 0.9"), "{reason}");
    assert_eq!(result["benchmark"]["passed"], false);
    assert_eq!(results(&workplace, "found/benchmark_results.json")["passed"], false);
    let text = workplace.forgelm(&ONLY[..4]).expect_code(3);
    text.expect_stdout("acc_norm 0.5714 ± 0.1373").expect_stderr("is below");
    // Equal passes: 8 of 14 rows.
    workplace.edit_config("min_score: 0.9", "min_score: 0.5714285714285714");
    workplace.forgelm(&ONLY).expect_code(0);
    workplace.edit_config("auto_revert: true", "min_samples: 15");
    workplace.forgelm(&ONLY).expect_code(2).expect_stderr("14 samples behind it");
    workplace.edit_config("min_samples: 15", "confidence: 0.95");
    workplace.forgelm(&ONLY).expect_code(2).expect_stderr("lies between them");
}

#[test]
fn the_gate_takes_a_model_back_and_the_evidence_has_the_scores() {
    let benchmark = "{enabled: true, tasks: [tasks/choice.yaml, tasks/answer.yaml], limit: 5, \
                     num_fewshot: 1, min_score: 0.9}";
    let workplace = workplace(benchmark);
    let result = workplace.forgelm(&JSON).expect_code(3).json();
    assert_eq!(result["reverted"], true);
    assert_eq!(result["gate_failures"][0]["gate"], "benchmark");
    let average = result["benchmark"]["average"].as_f64().unwrap();
    let scores = &result["benchmark"]["scores"];
    let of = |name: &str| scores[name].as_f64().unwrap();
    assert!((average - f64::midpoint(of("choice"), of("answer"))).abs() < 1e-12);
    assert_eq!(result["metrics"]["benchmark/average"], average);
    assert_eq!(result["metrics"]["benchmark/choice"], scores["choice"]);
    assert!(!workplace.path("out/final_model").exists());

    let log = workplace.json_lines("out/audit_log.jsonl");
    let event = |name: &str| log.iter().find(|line| line["event"] == name).unwrap();
    let judged = event("benchmark.evaluation_completed");
    assert_eq!((&judged["passed"], &judged["scores"]), (&json!(false), scores));
    assert_eq!(event("model.reverted")["reason"], "benchmark");
    assert_eq!(event("training.started")["gates"]["benchmark_min_score"], 0.9);

    let file = results(&workplace, "out/benchmark/benchmark_results.json");
    assert_eq!(file["results"]["answer"]["n_samples"], 5);
    assert_eq!(file["results"]["choice"]["num_fewshot"], 1);
    assert_eq!((&file["limit"], &file["average_score"]), (&json!(5), &json!(average)));
    // The evidence covers it.
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    let text = workplace.read("out/benchmark/benchmark_results.json");
    workplace.write("out/benchmark/benchmark_results.json", &text.replace("0.9", "0.1"));
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(6).expect_stderr("benchmark_results");
}

#[test]
fn a_model_that_passes_stays_and_its_adapter_is_benchmarked_again_to_the_same_scores() {
    let benchmark = "{enabled: true, tasks: [tasks/choice.yaml], min_score: 0.01}";
    let workplace = workplace(benchmark);
    let trained = workplace.forgelm(&JSON).expect_code(0).json();
    assert_eq!(trained["benchmark"]["passed"], true);
    let mut only = ONLY;
    only[3] = "out/final_model";
    let again = workplace.forgelm(&only).expect_code(0).json();
    assert_eq!(again["benchmark"], trained["benchmark"]);
    assert_eq!(again["results_file"], "out/benchmark/benchmark_results.json");
}

#[test]
fn what_cannot_be_asked_is_refused_before_training() {
    let workplace = workplace("{enabled: true, tasks: [TASK], data_dir: sets}");
    let mut now = "[TASK]".to_owned();
    let mut refused = |tasks: &str, code: i32, said: &[&str]| {
        workplace.edit_config(&now, tasks);
        tasks.clone_into(&mut now);
        for args in [&JSON[..2], &ONLY[..4]] {
            let mut ran = workplace.forgelm(&[args, &["--offline"]].concat()).expect_code(code);
            for text in said {
                ran = ran.expect_stderr(text);
            }
        }
        assert!(!workplace.path("out").exists(), "{tasks}");
    };
    refused("[helaswag]", 1, &["`helaswag` is not a known", "did you mean `hellaswag`?"]);
    let placed = ["`allenai/ai2_arc` is not here", "place its files as `DIR/allenai/ai2_arc/`"];
    refused("[arc_easy]", 2, &placed);
    refused("[tasks/absent.yaml]", 1, &["tasks/absent.yaml"]);
    workplace
        .write("tasks/python.yaml", "task: p\ndataset_path: json\ndoc_to_text: !function u.f\n");
    refused("[tasks/python.yaml]", 1, &["tasks/python.yaml:3", "no Python can run here"]);
    workplace.write("tasks/choice.test.jsonl", "{\"question\": \"What?\"}\n");
    refused("[tasks/choice.yaml]", 1, &["benchmark task `choice`: split `test`, row 1"]);
    refused("[tasks/own_piqa.yaml, tasks/own_piqa.yaml]", 1, &["are named `own_piqa`"]);
    refused(
        "[tasks/whole.yaml], min_score: 0.5",
        1,
        &["no task of `tasks/whole.yaml` has a score"],
    );
    refused("[tasks/whole.yaml], batch_size: some", 1, &["expected `auto` or a number"]);
    refused("[]", 1, &["tasks"]);
}

/// A data set of the hub that somebody placed by hand.
#[test]
fn a_built_in_task_reads_a_data_set_from_the_folder_that_is_named() {
    let workplace = workplace("{tasks: [piqa], data_dir: sets, limit: 3}");
    let rows = workplace.read("tasks/own_piqa.validation.jsonl");
    let task = forgelm_piqa_path(&workplace);
    workplace.write(&format!("sets/{task}/validation.jsonl"), &rows);
    workplace.forgelm(&[&ONLY[..], &["--offline"]].concat()).expect_code(0);
    let found = results(&workplace, "benchmark/benchmark_results.json");
    assert_eq!(found["results"]["piqa"]["n_samples"], 3);
    assert_eq!(found["results"]["piqa"]["n_rows"], 5);
    assert_eq!(found["data"][0]["dataset"], task);
}

/// The data set of `piqa`, as the refusal names it.
fn forgelm_piqa_path(workplace: &Workplace) -> String {
    let ran = workplace.forgelm(&[&ONLY[..4], &["--offline"]].concat()).expect_code(2);
    let (_, after) = ran.stderr.split_once("place its files as `DIR/").unwrap();
    after.split_once("/`").unwrap().0.to_owned()
}

#[test]
fn a_model_that_cannot_be_read_is_no_gate() {
    let workplace = workplace("{tasks: [tasks/choice.yaml]}");
    let of = |model: &str| {
        let mut only = ONLY;
        only[3] = model;
        workplace.forgelm(&[&only[..], &["--offline"]].concat())
    };
    let absent = of("absent").expect_code(2).json();
    assert_eq!((&absent["success"], &absent["model_path"]), (&json!(false), &json!("absent")));
    workplace.write("adapter/adapter_config.json", ADAPTER_WITHOUT_BASE);
    of("adapter").expect_code(1).expect_stderr("base_model_name_or_path");
    workplace.edit_config(", benchmark: {tasks: [tasks/choice.yaml]}", "");
    of("model").expect_code(1).expect_stderr("`evaluation.benchmark.tasks` is empty");
}
