//! `forgelm config …` and what a wrong config says.

use crate::support::{Workplace, data_dir};
use serde_json::Value;

#[test]
fn check_says_all_problems_at_once_with_their_places() {
    let workplace = Workplace::new();
    workplace.forgelm(&["config", "check", "run.yaml"]).expect_code(0);
    workplace.edit_config("learning_rate: 5e-3", "lerning_rate: 5e-3");
    workplace.edit_config("  r: 4", "  r: 0");
    for args in [&["config", "check", "run.yaml"][..], &["--config", "run.yaml"]] {
        let ran = workplace.forgelm(args).expect_code(1);
        assert!(ran.stderr.contains("run.yaml:6"), "{}", ran.stderr);
        assert!(ran.stderr.contains("`training.lerning_rate`"), "{}", ran.stderr);
        assert!(ran.stderr.contains("did you mean `learning_rate`"), "{}", ran.stderr);
        assert!(ran.stderr.contains("2 problems in `run.yaml`; nothing was started"));
        assert!(!workplace.path("out").exists());
    }
}

#[test]
fn every_bundled_config_is_valid() {
    let workplace = Workplace::new();
    let configs = data_dir().join("../../configs");
    let mut n_checked = 0;
    for entry in std::fs::read_dir(configs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            workplace.forgelm(&["config", "check", path.to_str().unwrap()]).expect_code(0);
            n_checked += 1;
        }
    }
    assert!(n_checked >= 2, "quickstart and reference");
}

#[test]
fn schema_explain_show_and_reference_answer() {
    let workplace = Workplace::new();
    let schema: Value = workplace.forgelm(&["config", "schema"]).expect_code(0).json();
    assert!(schema["properties"]["training"].is_object());
    let explained = workplace.forgelm(&["config", "explain", "training.learning_rate"]);
    assert!(explained.expect_code(0).stdout.contains("2e-5"));
    workplace
        .forgelm(&["config", "explain", "training.lerning_rate"])
        .expect_code(1)
        .expect_stderr("training.learning_rate");
    workplace.edit_config("data:\n", "auth:\n  hf_token: hf_verysecret\ndata:\n");
    let shown = workplace.forgelm(&["config", "show", "--resolved", "run.yaml"]).expect_code(0);
    assert!(shown.stdout.contains("num_train_epochs: 3"), "{}", shown.stdout);
    assert!(!shown.stdout.contains("verysecret") && !shown.stderr.contains("verysecret"));
    workplace.edit_config("  hf_token: hf_verysecret\n", "  hf_token: null\n");
    let shown = workplace.forgelm(&["config", "show", "--resolved", "run.yaml"]).expect_code(0);
    workplace.write("again.yaml", &shown.stdout);
    workplace.forgelm(&["config", "check", "again.yaml"]).expect_code(0);
    let reference = workplace.forgelm(&["config", "reference"]).expect_code(0);
    let stored = std::fs::read_to_string(data_dir().join("../../configs/reference.yaml"));
    assert_eq!(reference.stdout, stored.unwrap(), "configs/reference.yaml is not fresh");
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.edit_config("model:\n", "model:\n  multimodal: {enabled: true}\n");
    for flag in [None, Some("--dry-run")] {
        let mut args = vec!["--config", "run.yaml"];
        args.extend(flag);
        workplace
            .forgelm(&args)
            .expect_code(1)
            .expect_stderr("not available yet")
            .expect_stderr("model.multimodal.enabled");
    }
    workplace.write("run.yaml", &config);
    workplace
        .forgelm(&["--config", "run.yaml", "--wizard"])
        .expect_code(1)
        .expect_stderr("not available yet");
}

#[test]
fn the_command_line_keeps_its_contract() {
    let workplace = Workplace::new();
    let version = workplace.forgelm(&["--version"]).expect_code(0);
    assert_eq!(version.stdout.trim(), concat!("ForgeLM ", env!("CARGO_PKG_VERSION")));
    workplace.forgelm(&["--help"]).expect_code(0);
    workplace.forgelm(&["--no-such-flag"]).expect_code(2);
    workplace.forgelm(&["--config", "a", "--dry-run", "--merge"]).expect_code(2);
    workplace.forgelm(&[]).expect_code(1).expect_stderr("--config is required");
    workplace.forgelm(&["--config", "nowhere.yaml"]).expect_code(1).expect_stderr("nowhere.yaml");
    let json = workplace.forgelm(&["--config", "nowhere.yaml", "--output-format", "json"]);
    assert_eq!(json.expect_code(1).json()["success"], false);
}
