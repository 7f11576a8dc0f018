//! Checkpoints that the processes of a run write in shards, as `mpirun` starts it.

use crate::distributed::{ended, every_mpi, of_one_process, signal, workplace};
use crate::support::Workplace;
use std::fs;

const SHARDED: &str =
    "strategy: fsdp, fsdp_strategy: shard_grad_op, fsdp_state_dict_type: SHARDED_STATE_DICT";
const SHARDED_FULL_SHARD: &str = "strategy: fsdp, fsdp_state_dict_type: SHARDED_STATE_DICT";

/// Names of the shards of a checkpoint, sorted.
fn shards(workplace: &Workplace, checkpoint: &str) -> Vec<String> {
    let names = fs::read_dir(workplace.path(checkpoint)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains("-of-")).collect();
    names.sort();
    names
}

#[test]
fn killed_in_the_middle_a_run_with_shards_goes_on_with_any_number() {
    let expected = of_one_process();
    for (mpi, strategy) in every_mpi().into_iter().zip([SHARDED, SHARDED_FULL_SHARD]) {
        let workplace = workplace(strategy);
        let mut job = mpi.start(&workplace, 4, &["run.yaml"], &[]);
        crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
        signal(&workplace, 2, "-KILL");
        let ended = ended(&workplace, job);
        assert_ne!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(
            shards(&workplace, "out/checkpoint-4"),
            [
                "adapter_model-00001-of-00004.safetensors",
                "adapter_model-00002-of-00004.safetensors",
                "adapter_model-00003-of-00004.safetensors",
                "adapter_model-00004-of-00004.safetensors",
                "optimizer-00001-of-00004.safetensors",
                "optimizer-00002-of-00004.safetensors",
                "optimizer-00003-of-00004.safetensors",
                "optimizer-00004-of-00004.safetensors",
            ]
        );
        mpi.run(&workplace, 2, &["--resume"]).expect_code(0);
        assert!(workplace.adapter("out") == expected);
        assert_eq!(shards(&workplace, "out/checkpoint-12").len(), 4);
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    }
}

#[test]
fn one_process_writes_one_shard_and_goes_on_from_either_form() {
    let expected = of_one_process();
    let (sharded, full) = ("SHARDED_STATE_DICT", "FULL_STATE_DICT");
    for (from, to) in [(sharded, full), (full, sharded)] {
        let workplace = workplace(SHARDED);
        workplace.edit_config(sharded, from);
        workplace.run();
        assert!(workplace.adapter("out") == expected, "{from}");
        let n_shards = shards(&workplace, "out/checkpoint-8").len();
        assert_eq!(n_shards, if from == sharded { 2 } else { 0 });
        fs::remove_dir_all(workplace.path("out/checkpoint-12")).unwrap();
        workplace.edit_config(from, to);
        workplace.forgelm(&["--config", "run.yaml", "--resume", "--force-resume"]).expect_code(0);
        assert!(workplace.adapter("out") == expected, "{from}, then {to}");
        let n_shards = shards(&workplace, "out/checkpoint-12").len();
        assert_eq!(n_shards, if to == sharded { 2 } else { 0 });
    }
}

#[test]
fn shards_are_merged_off_line_and_what_is_wrong_with_them_is_named() {
    let workplace = workplace(SHARDED);
    workplace.run();
    let whole = self::workplace(&SHARDED.replace("SHARDED", "FULL"));
    whole.run();
    let merge = |more: &[&str]| {
        let mut args = vec!["checkpoint", "merge", "out/checkpoint-8"];
        args.extend(more);
        workplace.forgelm(&args)
    };
    let chat = |folder: &str| workplace.forgelm(&["chat", folder]);
    chat("out/checkpoint-8")
        .expect_code(1)
        .expect_stderr("`forgelm checkpoint merge` makes a whole");
    merge(&["--output", "merged"]).expect_code(0).expect_stdout("merged: whole, out of 1 shard");
    chat("merged").expect_code(0);
    for file in ["optimizer.safetensors", "adapter_model.safetensors", "adapter_config.json"] {
        let of = |workplace: &Workplace, folder: &str| fs::read(workplace.path(folder).join(file));
        let merged = of(&workplace, "merged").unwrap();
        assert!(merged == of(&whole, "out/checkpoint-8").unwrap(), "{file}");
    }
    merge(&["--output", "merged"]).expect_code(1).expect_stderr("already exists");
    let said = merge(&["--output", "again", "--output-format", "json"]).expect_code(0).json();
    assert_eq!((&said["success"], &said["n_shards"]), (&true.into(), &1.into()));

    let shard = workplace.path("out/checkpoint-8/optimizer-00001-of-00001.safetensors");
    let good = fs::read(&shard).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&shard, &bad).unwrap();
    let refused = merge(&[]).expect_code(6);
    refused.expect_stderr("optimizer-00001-of-00001.safetensors: its bytes changed since it was");
    // The run that is continued passes it over, by name.
    fs::remove_dir_all(workplace.path("out/checkpoint-12")).unwrap();
    let resumed = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let resumed = resumed.expect_stderr("checkpoint-8` was skipped");
    resumed.expect_stderr("checkpoint-4`");

    let merge = |dir: &str| workplace.forgelm(&["checkpoint", "merge", dir]);
    merge("out/checkpoint-12").expect_code(0).expect_stdout("out/checkpoint-12: whole");
    assert!(shards(&workplace, "out/checkpoint-12").is_empty());
    merge("out/checkpoint-12").expect_code(1).expect_stderr("there are no shards to merge");
    merge("nowhere").expect_code(1).expect_stderr("nowhere");
    workplace.forgelm(&["--config", "run.yaml", "--resume", "out/checkpoint-12"]).expect_code(0);
}

/// Rank 1 works in another folder, as on a host that does not see the run's.
#[test]
fn a_process_that_cannot_write_its_shard_is_named_on_all_and_nothing_is_left() {
    for mpi in every_mpi() {
        let workplace = workplace(SHARDED);
        let elsewhere = workplace.path("elsewhere");
        workplace.copy_model("elsewhere/model");
        fs::create_dir(elsewhere.join("out")).unwrap();
        for file in ["run.yaml", "data.jsonl"] {
            fs::copy(workplace.path(file), elsewhere.join(file)).unwrap();
        }
        let program = workplace.command(&[]).get_program().to_owned();
        let here = fs::canonicalize(workplace.path(".")).unwrap();
        let mut job = mpi.launch();
        for (i, folder) in [&here, &elsewhere].into_iter().enumerate() {
            if i > 0 {
                job.arg(":");
            }
            job.args(["-np", "1", "-wdir"]).arg(folder);
            job.arg(&program).args(["--config", "run.yaml"]);
        }
        let failed = ended(&workplace, mpi.spawn(job, &workplace)).expect_code(2);
        let failed = failed.expect_stderr("a checkpoint in shards was not written");
        let failed = failed.expect_stderr("  rank 1 (");
        let failed = failed.expect_stderr("-00002-of-00002.safetensors: cannot be created");
        failed.expect_stderr("hint: all hosts must see `training.output_dir`");
        for folder in ["out", "elsewhere/out"] {
            let left = fs::read_dir(workplace.path(folder)).unwrap();
            let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let left: Vec<String> = left.filter(|name| name.contains("checkpoint-")).collect();
            assert_eq!(left, [""; 0], "{folder}");
        }
        // The leader alone can write there.
        fs::remove_dir_all(workplace.path("out")).unwrap();
        workplace.edit_config("SHARDED_STATE_DICT", "FULL_STATE_DICT");
        mpi.run(&workplace, 2, &[]).expect_code(0);
    }
}
