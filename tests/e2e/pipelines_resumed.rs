//! Pipelines that are gone on with: interrupted, approved, changed, run in part.

use crate::pipelines::{
    JSON, RUN, events, of_stages, state, statuses, two_stages, verifies, workplace,
};
use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

fn resume(workplace: &Workplace, more: &[&str]) -> Ran {
    workplace.forgelm(&[&RUN[..], &["--resume"], more].concat())
}

fn from(workplace: &Workplace, stage: &str, more: &[&str]) -> Ran {
    workplace.forgelm(&[&RUN[..], &["--resume-from", stage], more].concat())
}

/// A finished pipeline of two stages.
fn finished() -> Workplace {
    let workplace = two_stages();
    workplace.forgelm(&RUN).expect_code(0);
    workplace
}

fn edit_state(workplace: &Workplace, change: impl FnOnce(&mut Value)) {
    let mut state = state(workplace);
    change(&mut state);
    workplace.write("pipe/pipeline_state.json", &state.to_string());
}

#[test]
fn a_finished_pipeline_is_not_overwritten_and_nothing_is_trained_again() {
    let workplace = finished();
    let (first, second) = (workplace.adapter("pipe/one"), workplace.adapter("pipe/two"));
    workplace.forgelm(&RUN).expect_code(1).expect_stderr("continue it with `--resume`");
    let log = workplace.read("pipe/two/audit_log.jsonl");
    let (id, finished_at) =
        (state(&workplace)["pipeline_run_id"].clone(), state(&workplace)["finished_at"].clone());
    for more in [&["--resume"][..], &["--resume-from", "dpo"], &["--resume-from", "sft"]] {
        let ran = workplace.forgelm(&[&RUN[..], more].concat()).expect_code(0);
        assert!(ran.stderr.contains("everything that it signed verifies"), "{}", ran.stderr);
        assert_eq!(
            workplace.read("pipe/two/audit_log.jsonl"),
            log,
            "{more:?}: its run is untouched"
        );
        verifies(&workplace);
    }
    assert!(workplace.adapter("pipe/one") == first && workplace.adapter("pipe/two") == second);
    let state = state(&workplace);
    assert_eq!((&state["pipeline_run_id"], &state["finished_at"]), (&id, &finished_at));
    let ended = events(&workplace).iter().filter(|name| *name == "pipeline.completed").count();
    assert_eq!(ended, 1, "it ended once");
}

/// A first signal: the stage has a good checkpoint, and the pipeline goes on from it.
#[test]
fn an_interrupted_stage_goes_on_from_its_own_checkpoint() {
    let whole = two_stages();
    whole.edit_config("max_steps: 4", "max_steps: 60");
    whole.forgelm(&RUN).expect_code(0);
    for flag in [&["--resume"][..], &["--resume-from", "dpo"]] {
        let workplace = two_stages();
        workplace.edit_config("max_steps: 4", "max_steps: 60");
        let mut child = workplace.start(&RUN);
        let start = Instant::now();
        while !workplace.path("pipe/two/checkpoint-4").exists() {
            assert!(
                start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let ran = Ran::from(child.wait_with_output().unwrap()).expect_code(7);
        ran.expect_stderr("`--resume` goes on where it stopped");
        let before = state(&workplace);
        assert_eq!(
            (&before["final_status"], &before["finished_at"]),
            (&json!("in_progress"), &Value::Null)
        );
        assert_eq!(of_stages(&before, "status"), ["completed", "running"]);
        assert_eq!(before["stages"][1]["exit_code"], 7);
        verifies(&workplace);
        let ran = workplace.forgelm(&[&RUN[..], flag].concat()).expect_code(0);
        assert!(ran.stderr.contains("continuing from `pipe/two/checkpoint-"), "{}", ran.stderr);
        for stage in ["pipe/one", "pipe/two"] {
            assert!(workplace.adapter(stage) == whole.adapter(stage), "{stage}: another adapter");
        }
        let after = state(&workplace);
        assert_eq!(after["pipeline_run_id"], before["pipeline_run_id"]);
        assert_eq!(events(&workplace).iter().filter(|name| *name == "pipeline.started").count(), 1);
        assert_eq!(verifies(&workplace)["evidence_verified"], 2);
    }
}

fn approve(workplace: &Workplace, run_id: &str) -> Ran {
    let args = ["approve", run_id, "--output-dir", "pipe/one"];
    workplace.command(&args).env("FORGELM_OPERATOR", "other@example").output().unwrap().into()
}

#[test]
fn a_gate_of_people_pauses_the_pipeline_until_they_have_decided() {
    let workplace = two_stages();
    workplace.edit_config(
        "data: {dataset_name_or_path: data/sft.jsonl}",
        "data: {dataset_name_or_path: data/sft.jsonl}\n    evaluation: {require_human_approval: true}",
    );
    let ended = workplace.forgelm(&[&RUN[..], &JSON[..]].concat()).expect_code(4).json();
    assert_eq!(
        (&ended["success"], &ended["final_status"]),
        (&json!(true), &json!("gated_pending_approval"))
    );
    assert_eq!(of_stages(&ended, "status"), ["gated_pending_approval", "pending"]);
    assert_eq!(ended["stopped_at"], "sft");
    let run_id = ended["stages"][0]["run_id"].as_str().unwrap();
    assert_eq!(ended["stages"][0]["output_model"], format!("one/final_model.staging.{run_id}"));
    assert!(!events(&workplace).contains(&"pipeline.completed".to_owned()));
    assert_eq!(verifies(&workplace)["status_census"]["gated_pending_approval"], 1);
    // Nobody has decided: a later stage is refused, and nothing else changes by asking.
    let refused = from(&workplace, "dpo", &JSON).expect_code(1).json();
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("waiting for approval") && error.contains(run_id), "{error}");
    let line = workplace.json_lines("pipe/audit_log.jsonl").into_iter().rev();
    let line = line.into_iter().find(|line| line["event"] == "pipeline.resume_refused").unwrap();
    assert_eq!((&line["requested_stage"], &line["blocking_stage"]), (&json!("dpo"), &json!("sft")));
    assert_eq!(line["blocking_status"], "gated_pending_approval");
    verifies(&workplace);
    resume(&workplace, &[]).expect_code(4).expect_stdout(&format!("forgelm approve {run_id}"));
    assert!(!workplace.path("pipe/two").exists());
    approve(&workplace, run_id).expect_code(0);
    let adapter = workplace.adapter("pipe/one");
    // The approved stage itself may be named: it is not trained again.
    for args in [&["--resume-from", "sft"][..], &["--resume-from", "dpo"], &["--resume"]] {
        workplace.forgelm(&[&RUN[..], args].concat()).expect_code(0);
        assert!(workplace.adapter("pipe/one") == adapter, "{args:?}");
        assert_eq!(state(&workplace)["stages"][0]["run_id"], run_id, "{args:?}");
    }
    assert_eq!(statuses(&workplace), ["completed", "completed"]);
    assert_eq!(
        of_stages(&state(&workplace), "output_model"),
        ["one/final_model", "two/final_model"]
    );
    assert_eq!(verifies(&workplace)["evidence_verified"], 2);
}

#[test]
fn a_rejected_stage_ends_the_pipeline() {
    let workplace = two_stages();
    workplace.edit_config(
        "data: {dataset_name_or_path: data/sft.jsonl}",
        "data: {dataset_name_or_path: data/sft.jsonl}\n    evaluation: {require_human_approval: true}",
    );
    workplace.forgelm(&RUN).expect_code(4);
    let run_id = state(&workplace)["stages"][0]["run_id"].as_str().unwrap().to_owned();
    let args = ["reject", &run_id, "--output-dir", "pipe/one", "--comment", "too rude"];
    let rejected = workplace.command(&args).env("FORGELM_OPERATOR", "other@example").output();
    Ran::from(rejected.unwrap()).expect_code(0);
    from(&workplace, "dpo", &[]).expect_code(1).expect_stderr("rejected");
    resume(&workplace, &[]).expect_code(3).expect_stderr("too rude");
    assert_eq!(statuses(&workplace), ["failed", "skipped_due_to_prior_revert"]);
    verifies(&workplace);
}

#[test]
fn fault_011_a_changed_config_is_told_key_by_key_and_a_forced_one_is_recorded_and_signed() {
    let workplace = finished();
    let (first, old) =
        (workplace.adapter("pipe/one"), state(&workplace)["pipeline_config_hash"].clone());
    workplace.write("run.yaml", &("# a comment\n".to_owned() + &workplace.read("run.yaml")));
    for ran in [resume(&workplace, &[]), from(&workplace, "dpo", &[])] {
        ran.expect_code(1).expect_stderr("only comments, blanks, or an address");
    }
    workplace
        .edit_config("output_dir: pipe/two, max_steps: 4", "output_dir: pipe/two, max_steps: 5");
    from(&workplace, "dpo", &[])
        .expect_code(1)
        .expect_stderr("`pipeline.stages[1].training.max_steps`: was 4; is 5")
        .expect_stderr("--force-resume");
    let before = workplace.adapter("pipe/two");
    from(&workplace, "dpo", &["--force-resume"]).expect_code(0);
    // The stage whose config is another one ran anew; what it was is kept, and the other one untouched.
    assert!(workplace.adapter("pipe/one") == first);
    assert!(workplace.adapter("pipe/two") != before, "another number of steps, another adapter");
    assert!(workplace.adapter("pipe/two.superseded.1") == before);
    let state = state(&workplace);
    assert_ne!(state["pipeline_config_hash"], old);
    let manifest = workplace.read("pipe/compliance/pipeline_manifest.json");
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let forced = &manifest["forced_resumes"][0];
    assert_eq!((&forced["old_config_hash"], &forced["operator"]), (&old, &json!("tester@example")));
    assert_eq!(forced["new_config_hash"], manifest["pipeline_config_hash"]);
    assert!(manifest.get("config").is_none());
    let names = events(&workplace);
    assert!(names.contains(&"pipeline.force_resume".to_owned()), "{names:?}");
    assert!(names.contains(&"pipeline.stage_superseded dpo".to_owned()), "{names:?}");
    verifies(&workplace);
}

/// A stage that runs anew has those after it run anew too: they would begin at another model.
#[test]
fn what_begins_at_another_model_runs_again() {
    let workplace = finished();
    let before = workplace.adapter("pipe/two");
    workplace
        .edit_config("output_dir: pipe/one, max_steps: 4", "output_dir: pipe/one, max_steps: 6");
    resume(&workplace, &["--force-resume"]).expect_code(0);
    assert!(workplace.adapter("pipe/two") != before);
    let again = events(&workplace);
    for stage in ["sft", "dpo"] {
        assert!(again.contains(&format!("pipeline.stage_superseded {stage}")), "{again:?}");
    }
    verifies(&workplace);
    // What was set aside still verifies, and the model that it stands on is still there.
    workplace.forgelm(&["verify-bundle", "pipe/two.superseded.1"]).expect_code(0);
    let model = "pipe/two.superseded.1/final_model";
    let score = ["score", "--model", model, "--input", "data/sft.jsonl", "--output", "s.jsonl"];
    workplace.forgelm(&score).expect_code(0);
}

#[test]
fn fault_091_other_stages_are_never_continued() {
    let workplace = finished();
    let config = workplace.read("run.yaml");
    let swapped = config.replace("name: sft", "name: x").replace("name: dpo", "name: sft");
    let fewer = config.split("  - name: dpo").next().unwrap().to_owned();
    let more =
        config.clone() + "  - {name: third, training: {trainer_type: sft, output_dir: pipe/x}}\n";
    let log = workplace.read("pipe/audit_log.jsonl");
    for other in [swapped, fewer, more] {
        workplace.write("run.yaml", &other);
        for flags in [&["--resume"][..], &["--resume-from", "sft"], &["--stage", "sft"]] {
            let force = if flags[0] == "--stage" { &[][..] } else { &["--force-resume"] };
            for force in [&[][..], force] {
                let ran = workplace.forgelm(&[&RUN[..], flags, force].concat()).expect_code(1);
                ran.expect_stderr("has other stages than the config");
            }
        }
    }
    assert_eq!(workplace.read("pipe/audit_log.jsonl"), log);
    workplace.write("run.yaml", &config);
    verifies(&workplace);
}

/// What is written in the state is a hint: what counts is what verifies.
#[test]
fn fault_090_a_stage_counts_by_its_evidence_and_not_by_the_state() {
    // Done, and not recorded.
    let workplace = finished();
    let (first, second) = (workplace.adapter("pipe/one"), workplace.adapter("pipe/two"));
    let log = workplace.read("pipe/two/audit_log.jsonl");
    edit_state(&workplace, |state| {
        state["final_status"] = json!("in_progress");
        state["stages"][1]["status"] = json!("running");
        state["stages"][1]["output_model"] = Value::Null;
    });
    resume(&workplace, &[]).expect_code(0).expect_stderr("was not recorded yet");
    assert_eq!(workplace.read("pipe/two/audit_log.jsonl"), log, "nothing was trained");
    verifies(&workplace);
    // Recorded, and its model is gone: made again, the same.
    fs::remove_dir_all(workplace.path("pipe/two/final_model")).unwrap();
    resume(&workplace, &[]).expect_code(0);
    assert!(workplace.adapter("pipe/two") == second);
    verifies(&workplace);
    // All of it is gone.
    fs::remove_dir_all(workplace.path("pipe/one")).unwrap();
    from(&workplace, "dpo", &[]).expect_code(0).expect_stderr("runs first although");
    assert!(workplace.adapter("pipe/one") == first && workplace.adapter("pipe/two") == second);
    verifies(&workplace);
    // One file of it is gone: the rest is kept, and the stage made again.
    fs::remove_file(workplace.path("pipe/one/final_model/tokenizer.json")).unwrap();
    resume(&workplace, &[]).expect_code(0).expect_stderr("`final_model/tokenizer.json` is gone");
    assert!(workplace.path("pipe/one.superseded.1").is_dir());
    assert!(workplace.adapter("pipe/one") == first);
    verifies(&workplace);
    // Another adapter than the next stage began at, with all that is signed about it as it should be.
    let other = two_stages();
    other.edit_config("output_dir: pipe/one, max_steps: 4", "output_dir: pipe/one, max_steps: 3");
    other.forgelm(&RUN).expect_code(0);
    let (mine, theirs) = (workplace.path("pipe/one"), other.path("pipe/one"));
    fs::rename(&mine, workplace.path("mine")).unwrap();
    fs::rename(&theirs, &mine).unwrap();
    let key = ["--key", "pipe/compliance/signing_key.pub"];
    let verify = ["verify-annex-iv", "--pipeline", "pipe"];
    let forged = workplace.forgelm(&[&verify[..], &key].concat()).expect_code(6);
    forged.expect_stderr("stage 1 `dpo`: one/final_model/adapter_model.safetensors: began at");
    fs::rename(&mine, &theirs).unwrap();
    fs::rename(workplace.path("mine"), &mine).unwrap();
    // Something in it differs from what was signed: nothing goes on from that.
    let file = workplace.path("pipe/one/final_model/adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    for ran in [resume(&workplace, &[]), from(&workplace, "dpo", &[])] {
        ran.expect_code(6).expect_stderr("stage `sft`: its evidence does not verify");
    }
}

#[test]
fn a_state_that_is_none_is_refused_and_says_why() {
    let workplace = finished();
    for bad in ["", "{", "[]", "{}", "{\"stages\": 3}"] {
        workplace.write("pipe/pipeline_state.json", bad);
        resume(&workplace, &[]).expect_code(1).expect_stderr("pipeline_state.json");
        from(&workplace, "dpo", &[]).expect_code(1).expect_stderr("pipeline_state.json");
        workplace.forgelm(&RUN).expect_code(1).expect_stderr("it has a pipeline");
    }
    assert_eq!(workplace.read("pipe/pipeline_state.json"), "{\"stages\": 3}");
}

#[test]
fn one_stage_runs_alone_at_the_model_before_it_or_at_a_given_one() {
    let workplace = two_stages();
    let stage = |name: &str, more: &[&str]| {
        workplace.forgelm(&[&RUN[..], &["--stage", name], more, &JSON[..]].concat())
    };
    let ended = stage("sft", &[]).expect_code(0).json();
    assert_eq!(of_stages(&ended, "status"), ["completed", "skipped_by_filter"]);
    assert_eq!(ended["final_status"], "in_progress", "not every stage is done");
    assert_eq!(verifies(&workplace)["status_census"]["skipped_by_filter"], 1);
    let second = stage("dpo", &[]).expect_code(0).json();
    assert_eq!(of_stages(&second, "status"), ["completed", "completed"]);
    assert_eq!(second["final_status"], "completed");
    assert_ne!(second["pipeline_run_id"], ended["pipeline_run_id"], "a pipeline run of its own");
    assert_eq!(second["stages"][0], ended["stages"][0], "the other one has what it had");
    let chained = workplace.adapter("pipe/two");
    // As if it had been run whole.
    let whole = finished();
    assert!(whole.adapter("pipe/two") == chained);
    // At another model: an adapter of somebody's, which is folded in, and a whole model.
    fs::rename(whole.path("pipe/two"), workplace.path("theirs")).unwrap();
    for (model, is_folded) in [("theirs/final_model", true), ("model", false)] {
        let start =
            format!("pipe/{}", state(&whole)["stages"][1]["start_model"]["path"].as_str().unwrap());
        assert!(workplace.path(&start).is_dir(), "theirs stands on it");
        let given = stage("dpo", &["--input-model", model]).expect_code(0).json();
        let row = &given["stages"][1];
        assert_eq!(
            (&row["input_source"], &row["input_model"]),
            (&json!("cli_override"), &json!(model))
        );
        assert_eq!(row["start_model"].is_object(), is_folded, "{row}");
        assert!(workplace.adapter("pipe/two") != chained, "{model}");
        verifies(&workplace);
    }
    assert!(workplace.adapter("pipe/two.superseded.1") == chained);
    // A stage that is made anew takes what was made from it out of what is done, until it is compared.
    let workplace = finished();
    workplace
        .edit_config("output_dir: pipe/one, max_steps: 4", "output_dir: pipe/one, max_steps: 3");
    let args = [&RUN[..], &["--stage", "sft"], &JSON[..]].concat();
    let ended = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!(of_stages(&ended, "status"), ["completed", "skipped_by_filter"]);
    verifies(&workplace);
    resume(&workplace, &[])
        .expect_code(0)
        .expect_stderr("stage `dpo` runs again: its config, or the model");
    assert_eq!(statuses(&workplace), ["completed", "completed"]);
    verifies(&workplace);
    // A stage with a model of its own needs none before it.
    let workplace = two_stages();
    workplace.edit_config(
        "- name: dpo\n",
        "- name: dpo\n    model: {name_or_path: model, load_in_4bit: false}\n",
    );
    let args = [&RUN[..], &["--stage", "dpo"], &JSON[..]].concat();
    let ended = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!(ended["stages"][1]["input_source"], "stage_explicit");
    assert_eq!(of_stages(&ended, "status"), ["skipped_by_filter", "completed"]);
    // And the rest follows.
    resume(&workplace, &[]).expect_code(0);
    assert_eq!(statuses(&workplace), ["completed", "completed"]);
    verifies(&workplace);
}

#[test]
fn two_programs_never_work_in_one_pipeline() {
    let workplace = workplace();
    workplace.edit_config("max_steps: 4", "max_steps: 2000");
    let mut child = workplace.start(&RUN);
    let start = Instant::now();
    while !workplace.path("pipe/one/checkpoint-2").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = resume(&workplace, &[]);
    let is_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_running, "the first one ended too early to mean anything");
    second.expect_code(1).expect_stderr("in use");
}

/// A resume without a pipeline begins one, as that of a run does.
#[test]
fn resume_without_a_pipeline_starts_afresh_with_a_warning() {
    let workplace = two_stages();
    resume(&workplace, &[]).expect_code(0).expect_stderr("no pipeline in `pipe`: starting afresh");
    assert_eq!(verifies(&workplace)["evidence_verified"], 2);
}

/// What lies too long in any of the folders stops the pipeline before a stage trains, and is recorded once
/// in its log.
#[test]
fn what_lies_too_long_in_the_folder_of_any_stage_stops_the_pipeline_before_the_first() {
    let workplace = two_stages();
    let config = workplace.read("run.yaml") + "retention: {enforce: block_on_excess}\n";
    workplace.write("run.yaml", &config);
    workplace.forgelm(&RUN).expect_code(0);
    fs::remove_dir_all(workplace.path("pipe/one")).unwrap();
    let documents = [("pipe/two/raw_documents", 91), ("pipe/raw_documents", 100)];
    for (folder, days) in documents.into_iter().chain([("pipe/ingestion_output", 1)]) {
        let document = format!("{folder}/a.txt");
        workplace.write(&document, "x");
        let file = fs::File::options().append(true).open(workplace.path(&document)).unwrap();
        file.set_modified(SystemTime::now() - days * Duration::from_secs(86_400)).unwrap();
    }
    let dry = [&RUN[..], &JSON, &["--dry-run"]].concat();
    assert_eq!(workplace.forgelm(&dry).expect_code(0).json()["retention_violations"], 2);
    let check = ["purge", "--check-policy", "--config", "run.yaml", "--output-format", "json"];
    assert_eq!(workplace.forgelm(&check).expect_code(0).json()["count"], 2);

    let found = resume(&workplace, &JSON).expect_code(3).json();
    let paths = found["violations"].as_array().unwrap().iter().map(|v| v["path"].clone());
    let expected = ["pipe/raw_documents", "pipe/two/raw_documents"].map(Value::from);
    assert_eq!(paths.collect::<Vec<_>>(), expected);
    let told = events(&workplace).iter().filter(|e| *e == "retention.policy_violation").count();
    assert_eq!(told, 2);
    assert!(!workplace.path("pipe/one/metrics.jsonl").exists(), "nothing was trained");
    let head = ["verify-audit", "pipe/audit_log.jsonl"];
    workplace.forgelm(&head).expect_code(0);

    for (folder, _) in documents {
        fs::remove_dir_all(workplace.path(folder)).unwrap();
    }
    resume(&workplace, &[]).expect_code(0);
    verifies(&workplace);
}
