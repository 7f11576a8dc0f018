//! `forgelm launch`: launchers that hang, fail, are killed and are asked to end; scripts stand in for most of
//! them, and start one process.

use crate::distributed::{ZERO2, ended, every_mpi, of_one_process, signal};
use crate::support::{Ran, Workplace};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A workplace whose steps take longer than a script needs to see a checkpoint and to kill, on the fastest disk.
fn with_long_steps() -> Workplace {
    let workplace = Workplace::new();
    workplace.edit_config("accumulation_steps: 1", "accumulation_steps: 24");
    workplace
}

/// A workplace with a script that may call `forgelm`, and `kill_at STEP`, which starts a run and kills it once
/// it has the checkpoint of a step.
fn workplace(script: &str) -> Workplace {
    let workplace = with_long_steps();
    let program = workplace.command(&[]).get_program().to_string_lossy().into_owned();
    let begin = format!(
        "forgelm() {{ '{program}' --config run.yaml \"$@\"; }}\n\
         kill_at() {{\n  '{program}' --config run.yaml & pid=$!\n  \
         while ! [ -e out/checkpoint-$1 ]; do sleep 0.01; done\n  kill -9 $pid; wait $pid\n}}\n\
         echo start >> starts\n"
    );
    workplace.write("script", &(begin + script));
    workplace
}

fn command(workplace: &Workplace, flags: &[&str]) -> Command {
    let args = [&["launch"], flags, &["--", "sh", "script"]].concat();
    workplace.command(&args)
}

fn launched(workplace: &Workplace, flags: &[&str]) -> Ran {
    command(workplace, flags).output().unwrap().into()
}

fn n_starts(workplace: &Workplace) -> usize {
    workplace.read("starts").lines().count()
}

fn uninterrupted() -> Vec<u8> {
    let workplace = with_long_steps();
    workplace.run();
    workplace.adapter("out")
}

/// The lines of `launch` itself, without what differs from time to time.
fn lines(ran: &Ran) -> Vec<String> {
    let own = ran.stderr.lines().filter_map(|line| line.strip_prefix("launch: "));
    let digits = |line: &str| match line.split_once("process group ") {
        Some((begin, rest)) => {
            format!("{begin}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => line.to_owned(),
    };
    own.map(digits).collect()
}

#[test]
fn a_run_passes_its_output_and_its_code_on() {
    let workplace = workplace("forgelm");
    let ran = launched(&workplace, &["--restarts", "2"]).expect_code(0);
    assert_eq!(lines(&ran), ["started : sh script", "ended with 0, checkpoint of step 12: done"]);
    assert!(
        ran.stdout.contains("validation loss") || ran.stdout.contains("trained "),
        "{}",
        ran.stdout
    );
    // What cannot be used once cannot be used twice.
    workplace.edit_config("learning_rate: 5e-3", "learning_rate: many");
    let ran = launched(&workplace, &["--restarts", "2"]).expect_code(1);
    let last = "ended with 1: no run had begun, which a restart does not mend";
    assert_eq!(lines(&ran)[1..], [last]);
    workplace.edit_config("learning_rate: many", "learning_rate: 5e-3");
    let ran = launched(&workplace, &["--restarts", "2"]).expect_code(1);
    ran.expect_stderr("the run ended by itself, which a restart does not mend");
    assert_eq!(n_starts(&workplace), 3);
    let missing = workplace.forgelm(&["launch", "--", "/nowhere/mpirun", "-np", "2"]);
    missing.expect_code(1).expect_stderr("`/nowhere/mpirun` cannot be started");
}

#[test]
fn a_launcher_that_hangs_after_its_run_is_ended() {
    for (script, said) in [
        ("forgelm; exec sleep 600", "its launcher hangs: SIGTERM"),
        ("trap '' TERM; forgelm; sleep 600; sleep 600", "the launcher did not end: SIGKILL"),
    ] {
        let workplace = workplace(script);
        let start = Instant::now();
        let ran = launched(&workplace, &["--grace", "1"]).expect_code(0);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        ran.expect_stderr("the run has ended with 0").expect_stderr(said);
    }
    // A refused run that hangs is a refused run.
    let workplace = workplace("forgelm; exec sleep 600");
    workplace.edit_config("path: data.jsonl", "path: elsewhere.jsonl");
    launched(&workplace, &["--grace", "1"]).expect_code(1).expect_stderr("has ended with 1");
}

#[test]
fn a_run_that_is_killed_twice_goes_on_and_gives_the_same_adapter() {
    let workplace = workplace(
        "case $(wc -l < starts) in\n  1) kill_at 4; exit 137 ;;\n  2) kill_at 8; kill -9 $$ ;;\n  \
         *) forgelm ;;\nesac\n",
    );
    let ran = launched(&workplace, &["--restarts", "5"]).expect_code(0);
    assert_eq!(n_starts(&workplace), 3);
    let said = lines(&ran);
    let begins = [
        "started : sh script",
        "ended with 137, checkpoint of step 4; restart 1 of 5 in 1 s",
        "started , from the newest checkpoint: sh script",
        "ended with 137, checkpoint of step 8; restart 2 of 5 in 2 s",
        "started , from the newest checkpoint: sh script",
        "ended with 0, checkpoint of step 12: done",
    ];
    assert_eq!(said, begins);
    assert!(workplace.adapter("out") == uninterrupted());
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn a_run_that_comes_no_further_is_not_started_for_ever() {
    // Started again it is left behind as soon as it has begun, and ends with its group.
    let workplace = workplace(
        "[ $(wc -l < starts) = 1 ] && { kill_at 4; exit 137; }\nforgelm &\n\
         while ! [ -s \"$FORGELM_LAUNCH_STATUS\" ]; do sleep 0.01; done\nexit 137\n",
    );
    let ran = launched(&workplace, &["--restarts", "9"]).expect_code(137);
    assert_eq!(n_starts(&workplace), 2);
    ran.expect_stderr("no checkpoint was made since the start before this one (step 4)");
    let none = launched(&workplace, &[]).expect_code(137);
    assert_eq!(n_starts(&workplace), 3, "unless it is asked for, nothing is started again");
    none.expect_stderr("it is started again only where `--restarts` says so");
}

#[test]
fn a_signal_is_passed_on_and_there_is_no_restart() {
    let workplace = workplace("exec '$PROGRAM' --config run.yaml");
    let program = workplace.command(&[]).get_program().to_string_lossy().into_owned();
    let script = workplace.read("script").replace("$PROGRAM", &program);
    workplace.write("script", &script);
    workplace.edit_config("max_steps: 12", "max_steps: 4000");
    let mut job = command(&workplace, &["--restarts", "3"]).spawn().unwrap();
    crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
    kill(&job, "-TERM");
    let ran = Ran::from(job.wait_with_output().unwrap()).expect_code(7);
    let ran = ran.expect_stderr("launch: asked to end: signal 15 is passed on");
    ran.expect_stderr(": it was asked to").expect_stderr("interrupted after step");
    assert_eq!(n_starts(&workplace), 1);
    // One that does not listen is killed by the second.
    workplace.write("script", "trap '' TERM; echo > deaf; sleep 600; sleep 600");
    let mut job = command(&workplace, &[]).spawn().unwrap();
    crate::resume::wait_for(&workplace.path("deaf"), &mut job);
    kill(&job, "-TERM");
    std::thread::sleep(Duration::from_millis(500));
    kill(&job, "-TERM");
    Ran::from(job.wait_with_output().unwrap())
        .expect_code(137)
        .expect_stderr("to end again: SIGKILL");
}

fn kill(job: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &job.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_job_that_loses_a_process_goes_on_by_itself() {
    let expected = of_one_process();
    for mpi in every_mpi() {
        let workplace = crate::distributed::workplace(ZERO2);
        let mut job = workplace.command(&["launch", "--restarts", "2", "--"]);
        job.args(mpi.words(&workplace, 2));
        let mut job = mpi.spawn(job, &workplace);
        crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
        signal(&workplace, 1, "-KILL");
        let ended = ended(&workplace, job).expect_code(0);
        let said = lines(&ended);
        assert_eq!(said.len(), 4, "{}", ended.stderr);
        assert!(said[1].contains("; restart 1 of 2 in 1 s"), "{said:?}");
        assert_eq!(said[3], "ended with 0, checkpoint of step 12: done");
        assert!(workplace.adapter("out") == expected);
        let lines = workplace.json_lines("out/audit_log.jsonl");
        assert!(lines.iter().any(|line| line["event"] == "training.resumed"));
    }
}
