//! Killed, interrupted and continued runs.

use crate::support::{Ran, Workplace};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Longest wait for something that a run should do.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn wait_for(path: &Path, child: &mut Child) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < PATIENCE, "no {}", path.display());
        assert!(child.try_wait().unwrap().is_none(), "ended before {}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn finish(child: Child) -> Ran {
    child.wait_with_output().unwrap().into()
}

/// A workplace whose run is long enough to be caught in the middle.
fn long_run(threads: &str) -> Workplace {
    let workplace = Workplace::new();
    workplace.edit_config("max_steps: 12", "max_steps: 60");
    workplace.edit_config("threads: 1", &format!("threads: {threads}"));
    workplace
}

fn uninterrupted(threads: &str) -> Vec<u8> {
    let workplace = long_run(threads);
    workplace.run();
    workplace.adapter("out")
}

/// The ledger without the checkpoints, which a run on request writes more of.
fn ledger(workplace: &Workplace) -> Vec<serde_json::Value> {
    let mut lines = workplace.json_lines("out/step_ledger.jsonl");
    lines.retain(|line| line["entry"] != "checkpoint");
    lines.iter_mut().for_each(|line| line["prev"] = serde_json::Value::Null);
    lines
}

#[test]
fn killed_at_any_time_and_resumed_gives_the_same_adapter() {
    let whole = long_run("1");
    whole.run();
    let expected = whole.adapter("out");
    for (threads, checkpoint) in
        [("1", "checkpoint-4"), ("2", "checkpoint-20"), ("1", "checkpoint-44")]
    {
        let workplace = long_run(threads);
        let mut child = workplace.start(&["--config", "run.yaml"]);
        wait_for(&workplace.path("out").join(checkpoint), &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!workplace.path("out/final_model").exists(), "killed too late to mean anything");
        workplace
            .forgelm(&["--config", "run.yaml", "--resume"])
            .expect_code(0)
            .expect_stderr("ended without a word after `training.started`");
        assert!(workplace.adapter("out") == expected, "killed at {checkpoint}: another adapter");
        let steps: Vec<_> = workplace
            .json_lines("out/metrics.jsonl")
            .iter()
            .filter(|line| line.get("loss").is_some())
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, (1..=60).collect::<Vec<_>>(), "each step once");
        assert!(ledger(&workplace) == ledger(&whole), "killed at {checkpoint}: another ledger");
        workplace.forgelm(&["verify-audit", "out"]).expect_code(0);
    }
}

#[test]
fn fault_069_071_a_killed_run_is_told_of_and_goes_on_with_another_number_of_threads() {
    let expected = uninterrupted("1");
    let workplace = long_run("1");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    wait_for(&workplace.path("out/checkpoint-4"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    workplace.edit_config("threads: 1", "threads: 2");
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(0)
        .expect_stderr("ended without a word after `training.started`")
        .expect_stderr("continuing from");
    assert!(workplace.adapter("out") == expected);
}

#[test]
fn fault_088_a_first_signal_finishes_the_step_and_exits_7() {
    let expected = uninterrupted("1");
    for name in ["-TERM", "-INT", "-HUP"] {
        let workplace = long_run("1");
        let mut child = workplace.start(&["--config", "run.yaml"]);
        wait_for(&workplace.path("out/checkpoint-4"), &mut child);
        signal(&child, name);
        let ran = finish(child).expect_code(7).expect_stderr("--resume");
        assert!(ran.stderr.contains("checkpoint"), "{}", ran.stderr);
        workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
        assert!(workplace.adapter("out") == expected, "{name}: another adapter");
    }
}

/// A step of this run takes long enough for two signals to fall into it.
#[test]
fn fault_088_a_second_signal_stops_at_once_and_the_old_checkpoint_is_valid() {
    let workplace = Workplace::new();
    let rows: Vec<String> = (0..512).map(crate::support::conversation).collect();
    workplace.write("data.jsonl", &(rows.join("\n") + "\n"));
    workplace.edit_config("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 100");
    workplace.edit_config("save_steps: 4", "save_steps: 1");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    wait_for(&workplace.path("out/checkpoint-1"), &mut child);
    std::thread::sleep(Duration::from_millis(100));
    // Two kinds, since a second one of a kind may be lost while the first waits, and no pause in which
    // the step could end.
    signal(&child, "-INT");
    signal(&child, "-TERM");
    let start = Instant::now();
    let ran = finish(child);
    assert!(matches!(ran.code, 2), "{}: {}", ran.code, ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!workplace.path("out/final_model").exists());
    // What was saved before is good, and the run ends as one that was never stopped.
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let adapter = workplace.adapter("out");
    workplace.edit_config("output_dir: out", "output_dir: whole");
    workplace.run();
    assert!(workplace.adapter("whole") == adapter);
}

#[test]
fn fault_083_a_second_run_on_the_same_folder_is_refused() {
    let workplace = long_run("1");
    // It is killed in the end, and must last until the second run has been refused.
    workplace.edit_config("max_steps: 60", "max_steps: 2000");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    wait_for(&workplace.path("out/checkpoint-4"), &mut child);
    let second = workplace.forgelm(&["--config", "run.yaml", "--resume"]);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(running, "the first run ended too early to mean anything");
    second.expect_code(1).expect_stderr("in use");
}

#[test]
fn fault_081_a_damaged_checkpoint_is_skipped_and_named() {
    let expected = {
        let workplace = Workplace::new();
        workplace.run();
        workplace.adapter("out")
    };
    let workplace = Workplace::new();
    workplace.run();
    std::fs::remove_dir_all(workplace.path("out/final_model")).unwrap();
    let file = workplace.path("out/checkpoint-12/optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(0)
        .expect_stderr("checkpoint-12");
    assert!(workplace.adapter("out") == expected);
}

#[test]
fn a_changed_config_is_not_resumed_silently() {
    let workplace = Workplace::new();
    workplace.run();
    workplace.edit_config("learning_rate: 5e-3", "learning_rate: 4e-3");
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(1)
        .expect_stderr("learning_rate");
}

#[test]
fn resume_without_a_checkpoint_starts_fresh_with_a_warning() {
    let workplace = Workplace::new();
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(0)
        .expect_stderr("no checkpoint");
    workplace
        .forgelm(&["--config", "run.yaml", "--resume", "nowhere"])
        .expect_code(1)
        .expect_stderr("nowhere");
}

/// Rank 64 makes matrices of 4096 elements: enough for moments in 8 bits.
#[test]
fn every_optimizer_is_resumed_with_the_same_bits_and_without_anothers_state() {
    let start = |optim: &str| {
        let workplace = long_run("2");
        workplace.edit_config("  r: 4\n", "  r: 64\n");
        workplace.edit_config("training:\n", &format!("training:\n  optim: {optim}\n"));
        workplace
    };
    let mut adapters = Vec::new();
    for optim in ["adamw", "adamw_8bit", "adafactor"] {
        let whole = start(optim);
        whole.run();
        let workplace = start(optim);
        let mut child = workplace.start(&["--config", "run.yaml"]);
        wait_for(&workplace.path("out/checkpoint-4"), &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!workplace.path("out/final_model").exists(), "killed too late to mean anything");
        let size = |workplace: &Workplace| {
            let file = workplace.path("out/checkpoint-4/optimizer.safetensors");
            std::fs::metadata(file).unwrap().len()
        };
        let bytes = size(&workplace);
        workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
        assert!(workplace.adapter("out") == whole.adapter("out"), "{optim}: another adapter");
        adapters.push((optim, bytes, workplace));
    }
    let bytes: Vec<u64> = adapters.iter().map(|(_, bytes, _)| *bytes).collect();
    assert!(bytes[1] * 2 < bytes[0] && bytes[2] * 10 < bytes[0], "sizes of states: {bytes:?}");
    for (i, (optim, _, workplace)) in adapters.iter().enumerate() {
        let (other, _, other_place) = &adapters[(i + 1) % adapters.len()];
        assert!(workplace.adapter("out") != other_place.adapter("out"), "{optim} is {other}");
        workplace.edit_config(&format!("optim: {optim}"), &format!("optim: {other}"));
        let resume = ["--config", "run.yaml", "--resume"];
        workplace.forgelm(&resume).expect_code(1).expect_stderr("`training.optim`");
        let forced = ["--config", "run.yaml", "--resume", "--force-resume"];
        workplace
            .forgelm(&forced)
            .expect_code(1)
            .expect_stderr(&format!("the state of the optimizer `{optim}`"));
    }
}

/// As a machine that sleeps, or that is slowed down until it hardly moves.
#[test]
fn fault_073_074_a_run_that_stands_still_for_a_while_goes_on() {
    let expected = uninterrupted("1");
    let workplace = long_run("1");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    wait_for(&workplace.path("out/checkpoint-4"), &mut child);
    signal(&child, "-STOP");
    std::thread::sleep(Duration::from_secs(2));
    signal(&child, "-CONT");
    finish(child).expect_code(0);
    assert!(workplace.adapter("out") == expected, "another adapter");
}

#[test]
fn fault_027_data_that_changes_during_the_run_is_an_error_of_integrity() {
    let workplace = long_run("1");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    wait_for(&workplace.path("out/checkpoint-4"), &mut child);
    let text = workplace.read("data.jsonl").replace("red", "sad");
    workplace.write("data.jsonl", &text);
    finish(child).expect_code(6).expect_stderr("data.jsonl");
    assert!(!workplace.path("out/final_model").exists(), "a model with false evidence");
}

#[test]
fn fault_086_a_folder_that_goes_away_ends_the_run_and_its_state_is_saved_beside() {
    let whole = long_run("1");
    whole.run();
    for moved in [false, true] {
        let workplace = long_run("1");
        let mut child = workplace.start(&["--config", "run.yaml"]);
        wait_for(&workplace.path("out/checkpoint-4"), &mut child);
        let away = workplace.path("away");
        std::fs::rename(workplace.path("out"), &away).unwrap();
        if !moved {
            std::fs::remove_dir_all(&away).unwrap();
        }
        let ran = finish(child).expect_code(2);
        let ran = ran.expect_stderr("the folder of the run was removed or moved while it worked");
        assert!(!workplace.path("out").exists(), "nothing is begun anew in its place");
        // The hint is a command that works, and the run ends as if nothing had been.
        let line = ran.stderr.lines().find(|line| line.contains("--resume")).unwrap();
        let checkpoint = line.split('`').nth(1).unwrap();
        assert!(line.contains(&format!("--resume {checkpoint}")), "{line}");
        workplace.forgelm(&["--config", "run.yaml", "--resume", checkpoint]).expect_code(0);
        assert!(workplace.adapter("out") == whole.adapter("out"), "another adapter");
    }
}
