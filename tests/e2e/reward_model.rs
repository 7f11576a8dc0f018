//! GRPO with a classifier as its judge.

use crate::support::Workplace;
use crate::trainers::{example, series};
use forgelm_artifact::safetensors::{SafetensorsFile, TensorToWrite, to_bytes};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;

/// Of the tiny model.
const WIDTH: usize = 64;

/// The GRPO example with the tiny model under another head as its judge.
fn judged() -> Workplace {
    let run = example("grpo");
    run.copy_model("judge");
    let mut config: Value = serde_json::from_str(&run.read("judge/config.json")).unwrap();
    config["architectures"] = json!(["LlamaForSequenceClassification"]);
    config["id2label"] = json!({"0": "good"});
    run.write("judge/config.json", &config.to_string());
    write_head(&run, Some([1, WIDTH]));
    let length = "grpo_max_completion_length";
    run.edit_config(length, &format!("grpo_reward_model: judge\n  {length}"));
    run
}

/// `judge/model.safetensors` with a `score.weight` of this shape in the place of the model's head.
fn write_head(run: &Workplace, shape: Option<[usize; 2]>) {
    let path = run.path("judge/model.safetensors");
    let file = SafetensorsFile::open(&run.path("model/model.safetensors")).unwrap();
    let names: Vec<String> =
        file.names().filter(|name| *name != "lm_head.weight").map(str::to_owned).collect();
    let views: Vec<_> = names.iter().map(|name| file.tensor(name).unwrap()).collect();
    let mut tensors: Vec<TensorToWrite<'_>> = names
        .iter()
        .zip(&views)
        .map(|(name, view)| TensorToWrite {
            name,
            dtype: view.dtype,
            shape: view.shape,
            bytes: Cow::Borrowed(view.bytes),
        })
        .collect();
    let [rows, columns] = shape.unwrap_or_default();
    let weights: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 37 % 17) as f32 - 8.0) / 16.0).collect();
    if let Some(shape) = &shape {
        tensors.push(TensorToWrite::f32("score.weight", shape, &weights));
    }
    fs::write(path, to_bytes(&tensors, &BTreeMap::new())).unwrap();
}

#[test]
fn grpo_learns_what_a_classifier_likes() {
    let run = judged();
    // Without a template it reads the two texts, and judges by the last token of the answer.
    fs::remove_file(run.path("judge/chat_template.jinja")).unwrap();
    let rows: Vec<String> =
        (0..8).map(|i| json!({"prompt": format!("Say {i}:")}).to_string()).collect();
    run.write("rows.jsonl", &rows.join("\n"));
    run.edit_config("configs/data/sums.jsonl", "rows.jsonl");
    run.edit_config("completion_length: 12", "completion_length: 2");
    run.edit_config("max_steps: 24", "max_steps: 150");
    let ran = run.run();
    assert!(ran.stderr.contains("rewarded by grpo_reward_model\n"), "{}", ran.stderr);
    let rewards = series(&run, "reward");
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
    let (before, after) = (mean(&rewards[..8]), mean(&rewards[rewards.len() - 8..]));
    let spread = mean(&series(&run, "reward_std")[..8]);
    assert!(spread > 0.0, "the judge tells answers apart");
    assert!(after > before + spread, "the mean reward went from {before} to {after}, {spread}");
    assert_eq!(series(&run, "rewards/grpo_reward_model/mean"), rewards);
    // Which classifier it was is in the evidence.
    let report: Value =
        serde_json::from_str(&run.read("out/compliance/compliance_report.json")).unwrap();
    let text = report.to_string();
    assert!(text.contains(r#""role":"grpo_reward_model""#), "{text}");
    run.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn killed_and_resumed_or_on_two_threads_a_judged_run_gives_the_same_adapter() {
    let whole = judged();
    whole.run();
    let two = judged();
    two.edit_config("threads: 1", "threads: 2");
    two.run();
    assert!(two.adapter("out") == whole.adapter("out"), "two threads");
    let interrupted = judged();
    let mut child = interrupted.start(&["--config", "run.yaml"]);
    while !interrupted.path("out/checkpoint-8").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Another judge would be another run.
    let (config, weights) =
        ("judge/config.json", fs::read(interrupted.path("judge/model.safetensors")).unwrap());
    assert!(interrupted.path(config).is_file());
    let mut other = weights.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(interrupted.path("judge/model.safetensors"), other).unwrap();
    let resume = ["--config", "run.yaml", "--resume"];
    let ran = interrupted.forgelm(&resume).expect_code(1);
    assert!(ran.stderr.contains("reward model (SHA-256)"), "{}", ran.stderr);
    fs::write(interrupted.path("judge/model.safetensors"), weights).unwrap();
    interrupted.forgelm(&resume).expect_code(0);
    assert!(interrupted.adapter("out") == whole.adapter("out"), "resumed");
}

#[test]
fn what_cannot_judge_is_refused_before_step_one() {
    let refused = |run: &Workplace, said: &str| {
        let ran = run.forgelm(&["--config", "run.yaml"]).expect_code(1);
        assert!(ran.stderr.contains(said), "no `{said}` in\n{}", ran.stderr);
        assert!(!run.path("out").exists(), "something was written");
    };
    let run = judged();
    run.edit_config("grpo_reward_model: judge", "grpo_reward_model: model");
    refused(&run, "expected a classifier, `LlamaForSequenceClassification`");
    run.edit_config("grpo_reward_model: model", "grpo_reward_model: ./nowhere");
    refused(&run, "nowhere");
    let run = judged();
    write_head(&run, None);
    refused(&run, "tensor `score.weight` is missing");
    write_head(&run, Some([1, 3]));
    refused(&run, "tensor `score.weight` has shape [1, 3]");
    let run = judged();
    fs::remove_file(run.path("judge/tokenizer.json")).unwrap();
    refused(&run, "judge");
    let run = judged();
    fs::remove_file(run.path("judge/chat_template.jinja")).unwrap();
    refused(
        &run,
        "sums.jsonl:1: `prompt`: the prompt is a conversation, and the reward model has no",
    );
    // And a classifier writes no text.
    let run = judged();
    run.edit_config("name_or_path: model", "name_or_path: judge");
    refused(&run, "expected `LlamaForCausalLM`");
}

#[test]
fn the_first_of_several_labels_is_the_reward_and_that_is_said() {
    let run = judged();
    run.edit_config("max_steps: 24", "max_steps: 1");
    let mut config: Value = serde_json::from_str(&run.read("judge/config.json")).unwrap();
    config["id2label"] = json!({"0": "good", "1": "bad"});
    run.write("judge/config.json", &config.to_string());
    write_head(&run, Some([2, WIDTH]));
    run.run().expect_stderr("the reward model has 2 labels: the first is the reward");
}
