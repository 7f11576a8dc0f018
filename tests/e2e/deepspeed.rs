//! DeepSpeed's JSON files: read with the plan, compared between processes, and in the evidence.

use crate::distributed::{ended, every_mpi, of_one_process, workplace};
use crate::support::Workplace;
use serde_json::Value;

const FILE: &str = "strategy: deepspeed, deepspeed_config: ds.json";

fn dry_run(workplace: &Workplace, file: &str) -> crate::support::Ran {
    workplace.write("ds.json", file);
    workplace.forgelm(&["--config", "run.yaml", "--dry-run"])
}

#[test]
fn a_file_is_read_with_the_plan_or_refused_with_all_that_is_wrong_with_it() {
    let workplace = workplace(FILE);
    let missing = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(1);
    missing.expect_stderr("ds.json: cannot be read: ").expect_stderr("or a JSON file");
    let good = r#"{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}, "steps_per_print": 10,
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": "auto"}"#;
    let planned = dry_run(&workplace, good).expect_code(0);
    let ignored = "has no effect here: `zero_optimization.reduce_bucket_size`, `steps_per_print`";
    planned.expect_stdout(ignored).expect_stdout("ds.json");
    let wrong = r#"{"zero_optimization": {"stage": 2, "overlap_com": true}, "train_batch_size": 16,
        "fp16": {"enabled": true}}"#;
    dry_run(&workplace, wrong)
        .expect_code(1)
        .expect_stderr("did you mean `overlap_comm`?")
        .expect_stderr("`train_batch_size` is `16`; expected `8` or `auto`")
        .expect_stderr("`fp16.enabled: true` is not supported")
        .expect_stderr("3 problems in `ds.json`; nothing was started");
    let twice = "{\n  \"fp16\": {},\n  \"fp16\": {}\n}";
    dry_run(&workplace, twice).expect_code(1).expect_stderr("ds.json:3:");
    // With another config it may be the same as the one of the run.
    workplace.edit_config("accumulation_steps: 8", "accumulation_steps: 16");
    dry_run(&workplace, good).expect_code(1).expect_stderr("is `8`; expected `16` or `auto`");
}

#[test]
fn a_file_gives_the_bits_of_one_process_and_is_in_the_evidence() {
    let expected = of_one_process();
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    for (stage, name) in [(0, "deepspeed zero0"), (1, "deepspeed zero2"), (3, "deepspeed zero3")] {
        let workplace = workplace(FILE);
        let file = format!(r#"{{"zero_optimization": {{"stage": {stage}}}}}"#);
        workplace.write("ds.json", &file);
        let job = mpi.start(&workplace, 2, &["run.yaml"], &[]);
        ended(&workplace, job).expect_code(0);
        assert!(workplace.adapter("out") == expected, "stage {stage}");
        let report: Value =
            serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
        let distributed = &report["training_parameters"]["distributed"];
        assert_eq!(distributed["strategy"], name);
        assert_eq!(distributed["deepspeed_config"]["path"], "ds.json");
        let digest = forgelm_artifact::hash::sha256_file(&workplace.path("ds.json")).unwrap();
        assert_eq!(distributed["deepspeed_config"]["sha256"], digest.to_string());
        // It decides no bit: the run can be made again without it.
        std::fs::remove_file(workplace.path("ds.json")).unwrap();
        workplace.forgelm(&["reproduce", "out", "--output", "again"]).expect_code(0);
    }
}

#[test]
fn processes_that_read_two_files_do_not_begin() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let workplace = workplace(FILE);
    workplace.write("ds.json", r#"{"zero_optimization": {"stage": 2}}"#);
    workplace.write("other.json", r#"{"zero_optimization": {"stage": 0}}"#);
    workplace.write("other.yaml", &workplace.read("run.yaml").replace("ds.json", "other.json"));
    let job = mpi.start(&workplace, 2, &["run.yaml", "other.yaml"], &[]);
    ended(&workplace, job)
        .expect_code(1)
        .expect_stderr("the processes of this run differ")
        .expect_stderr("`deepspeed_config`: ");
    assert!(!workplace.path("out").exists(), "nothing was begun");
}
