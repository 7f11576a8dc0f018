//! Rewards from libraries: what GRPO learns from them, and what ends a run.

use crate::plugins::compile;
use crate::support::{Ran, Workplace};
use crate::trainers::{example, series};
use serde_json::Value;

const REWARDS: &str = "loader/tests/plugins/rewards.c";

/// The example of GRPO on the tiny model, rewarded by a library too.
fn rewarded(steps: usize, flags: &[&str], rewards: &str) -> Workplace {
    let run = example("grpo");
    run.edit_config("max_steps: 24", &format!("max_steps: {steps}"));
    compile(&run, REWARDS, "rewards", flags);
    let section = format!("plugins: {{paths: [rewards.so], rewards: {rewards}}}\n");
    run.write("run.yaml", &(run.read("run.yaml") + &section));
    run
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What it rewards there is more of in the end, and less of what it punishes.
#[test]
fn a_reward_in_c_changes_what_grpo_learns() {
    let [more, less] = ["-DSIGN=1.0", "-DSIGN=-1.0"].map(|sign| {
        let run = rewarded(60, &[sign], "[{name: letters_c}]");
        let ran = run.run();
        let said = "answers are rewarded by format_length + math_answer + letters_c";
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        run
    });
    let of = |run: &Workplace| {
        let values = series(run, "rewards/letters_c/mean");
        assert_eq!(values.len(), 60);
        (mean(&values[..10]), mean(&values[50..]))
    };
    let (before, after) = of(&more);
    assert!(after > before + 0.05, "the share went from {before} to {after}");
    let (before, after) = of(&less);
    assert!(after > before + 0.05, "less the share went from {before} to {after}");
    let run = more;
    // The evidence says who rewarded, from where, and that it ran apart.
    let report = run.read("out/compliance/compliance_report.json");
    let report: Value = serde_json::from_str(&report).unwrap();
    let used: Vec<(&str, &str, &str)> = report["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| ["kind", "name", "isolation"].map(|key| of[key].as_str().unwrap()))
        .map(|[kind, name, isolation]| (kind, name, isolation))
        .collect();
    let expected = [
        ("trainer", "grpo", "in_process"),
        ("reward", "format_length", "in_process"),
        ("reward", "math_answer", "in_process"),
        ("reward", "letters_c", "process"),
    ];
    assert_eq!(used, expected);
    run.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn where_a_reward_runs_changes_no_bit_and_another_reward_is_another_run() {
    let apart = rewarded(4, &[], "[{name: letters_c}, {name: gold_c}]");
    apart.run();
    assert_eq!(series(&apart, "rewards/gold_c/mean"), [1.0; 4]);
    let within = rewarded(4, &[], "[{name: letters_c}, {name: gold_c}]");
    within.edit_config("paths:", "isolation: in_process, paths:");
    within.run();
    assert!(apart.adapter("out") == within.adapter("out"), "other bytes");
    within.edit_config(", {name: gold_c}", "");
    std::fs::remove_dir_all(within.path("out/final_model")).unwrap();
    let ran = within.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(1);
    assert!(ran.stderr.contains("written by another run"), "{}", ran.stderr);
}

/// Never taken for zero: the run ends, and says whose reward it was.
#[test]
fn fault_075_a_reward_of_a_library_that_gives_no_number_ends_the_run_by_its_name() {
    for (judge, said) in [
        ("nan_value", "the reward `letters_c` of record "),
        ("nan_value", "NaN is not a finite number"),
        ("unwritten", "NaN is not a finite number"),
        ("refuses", "reward `letters_c` of rewards 0.1.0 (rewards.so): it broke"),
        ("crashes", "its worker died: killed by signal 6 (abort)"),
    ] {
        let run = rewarded(4, &[&format!("-DJUDGE={judge}")], "[{name: letters_c}]");
        let ran = run.forgelm(&["--config", "run.yaml"]).expect_code(2);
        for said in [said, "`letters_c`", "the last checkpoint is good"] {
            assert!(ran.stderr.contains(said), "{judge}: no `{said}` in\n{}", ran.stderr);
        }
    }
}

#[test]
fn rewards_that_cannot_be_used_are_refused_before_anything_starts() {
    let refused = |run: &Workplace, said: &str| {
        let ran: Ran = run.forgelm(&["--config", "run.yaml"]).expect_code(1);
        assert!(ran.stderr.contains(said), "no `{said}` in:\n{}", ran.stderr);
        assert!(!run.path("out").exists(), "something was written");
    };
    let with = |rewards: &str| rewarded(1, &[], rewards);
    refused(&with("[{name: none}]"), "no reward plugin is named `none`; loaded: ");
    refused(
        &with("[{name: letters_c}, {name: letters_c}]"),
        "`plugins.rewards`: `letters_c` counts already",
    );
    refused(&with("[{name: format_length}]"), "`plugins.rewards`: `format_length` counts already");
    refused(
        &with("[{name: letters_c, options: [x]}]"),
        "`plugins.rewards`: `x`; expected `key=value`",
    );
    refused(&with("[{name: letters_c, options: [x=1]}]"), "a reward in C has no options");
    refused(&with("[{options: [x=1]}]"), "plugins.rewards[0].name");
    let other = Workplace::new();
    let section = "plugins: {rewards: [{name: format_length}]}\n";
    other.write("run.yaml", &(other.read("run.yaml") + section));
    refused(&other, "`plugins.rewards`: `format_length` would reward nothing");
}

#[test]
fn plugin_check_finds_rewards_that_depend_on_what_they_should_not() {
    let workplace = Workplace::new();
    let failed = |judge: &str, code: i32| {
        compile(&workplace, REWARDS, "rewards", &[&format!("-DJUDGE={judge}")]);
        let ran = workplace.forgelm(&["plugin", "check", "rewards.so"]).expect_code(code);
        let failed = ran.stdout.lines().filter(|line| line.starts_with("FAILED"));
        failed.map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(failed("good", 0), Vec::<String>::new());
    assert_eq!(failed("nan_value", 1)[0], "gives finite numbers");
    assert_eq!(
        failed("by_place", 1),
        ["gives the same rewards in another order", "gives an answer the same reward alone"]
    );
    assert!(failed("forgetful", 1).contains(&"gives the same rewards again".to_owned()));
}
