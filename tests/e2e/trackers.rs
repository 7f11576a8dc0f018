//! `training.report_to`: the numbers of a run where other tools read them.

use crate::support::Workplace;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A workplace with this tracker.
fn workplace(tracker: &str) -> Workplace {
    let workplace = Workplace::new();
    let to = format!("report_to: {tracker}\n  logging_steps: 1");
    workplace.edit_config("report_to: none", &to);
    workplace
}

/// A field of a message: number, and the bytes of a text or message, or the eight or four of a number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let n = match tag & 7 {
            0 => {
                let value = varint(&mut bytes);
                found.push((tag >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        found.push((tag >> 3, bytes[..n].to_vec()));
        bytes = &bytes[n..];
    }
    found
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// The event files below a folder, in the order in which TensorBoard reads them.
fn event_files(dir: PathBuf) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a reader of event files has in the end: each tag's values by step, each step once. Panics where a
/// step comes twice.
fn scalars(files: &[PathBuf]) -> BTreeMap<String, BTreeMap<u64, f32>> {
    let mut found: BTreeMap<String, BTreeMap<u64, f32>> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        let mut n_events = 0;
        while !rest.is_empty() {
            let length = number(&rest[..8]) as usize;
            // A process that was killed in the middle of a record leaves a part of it.
            let Some(event) = rest.get(12..12 + length) else { break };
            rest = rest.get(12 + length + 4..).unwrap_or_default();
            let event: BTreeMap<u64, Vec<u8>> = fields(event).into_iter().collect();
            let step = event.get(&2).map_or(0, |step| number(step));
            if n_events == 0 {
                assert_eq!(event[&3], b"brain.Event:2", "{}", file.display());
            }
            if event.contains_key(&7) {
                assert!(i > 0, "only what goes on begins anew");
                found.values_mut().for_each(|of| of.retain(|known, _| *known < step));
            }
            for (_, value) in fields(event.get(&5).map_or(&[], Vec::as_slice)) {
                let value: BTreeMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
                let tag = String::from_utf8(value[&1].clone()).unwrap();
                let number = f32::from_le_bytes(value[&2][..].try_into().unwrap());
                let is_new = found.entry(tag.clone()).or_default().insert(step, number).is_none();
                assert!(is_new || tag == "train/epoch", "{tag} of step {step} comes twice");
            }
            n_events += 1;
        }
    }
    found
}

#[test]
fn tensorboard_gets_the_numbers_of_metrics_jsonl_under_the_usual_names() {
    let workplace = workplace("tensorboard");
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("out/runs/"), "{}", dry.stdout);
    workplace.run();
    let files = event_files(workplace.path("out/runs/model_finetune"));
    assert_eq!(files.len(), 1);
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.1") && name.contains(".fg-"), "{name}");
    let found = scalars(&files);
    for (key, tag) in [
        ("loss", "train/loss"),
        ("learning_rate", "train/learning_rate"),
        ("grad_norm", "train/grad_norm"),
        ("eval_loss", "eval/loss"),
    ] {
        let lines = workplace.json_lines("out/metrics.jsonl");
        let expected: BTreeMap<u64, u32> = lines
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()? as f32)))
            .map(|(step, value)| (step, value.to_bits()))
            .collect();
        let found: BTreeMap<u64, u32> =
            found[tag].iter().map(|(step, value)| (*step, value.to_bits())).collect();
        assert_eq!(found, expected, "{tag}");
    }
    assert!(found.contains_key("train/train_runtime") && found.contains_key("train/total_flos"));
    // A copy is no evidence: it may go, and the run verifies.
    fs::remove_dir_all(workplace.path("out/runs")).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn what_is_not_written_means_tensorboard_and_none_writes_nothing() {
    let unwritten = Workplace::new();
    unwritten.edit_config("  report_to: none\n", "  run_name: ../a name\n");
    unwritten.run();
    assert_eq!(event_files(unwritten.path("out/runs/.._a name")).len(), 1);
    let none = Workplace::new();
    none.run();
    assert!(!none.path("out/runs").exists());
    // Where numbers go decides no bit of the weights.
    assert_eq!(unwritten.adapter("out"), none.adapter("out"));
}

#[test]
fn a_run_that_was_killed_goes_on_without_a_step_twice() {
    let workplace = workplace("tensorboard");
    workplace.edit_config("max_steps: 12", "max_steps: 60");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    while !workplace.path("out/checkpoint-20").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // From an earlier one, so that the killed process has told more than is kept.
    let kept = fs::read_dir(workplace.path("out")).unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok()
    });
    let oldest = format!("out/checkpoint-{}", kept.min().unwrap());
    workplace.forgelm(&["--config", "run.yaml", "--resume", &oldest]).expect_code(0);
    let files = event_files(workplace.path("out/runs/model_finetune"));
    assert_eq!(files.len(), 2);
    let found = scalars(&files);
    assert_eq!(
        found["train/loss"].keys().copied().collect::<Vec<_>>(),
        (1..=60).collect::<Vec<_>>()
    );
    let lines = workplace.json_lines("out/metrics.jsonl");
    let n_evaluations = lines.iter().filter(|line| line.get("eval_loss").is_some()).count();
    assert_eq!(found["eval/loss"].len(), n_evaluations);
}

#[test]
fn a_tracker_that_cannot_be_written_is_told_once_and_ends_nothing() {
    let workplace = workplace("tensorboard");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    child.wait().unwrap();
    // Continued where a file stands in the place of the folder.
    fs::remove_dir_all(workplace.path("out/runs")).unwrap();
    fs::remove_dir_all(workplace.path("out/checkpoint-12")).unwrap();
    fs::remove_dir_all(workplace.path("out/final_model")).unwrap();
    workplace.write("out/runs", "in the way");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert_eq!(ran.stderr.matches("tensorboard: nothing is written").count(), 1, "{}", ran.stderr);
    assert_eq!(workplace.read("out/runs"), "in the way");
}
