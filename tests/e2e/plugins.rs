//! Plugins from shared libraries: compiled here with the system's compiler against the header
//! alone, and used in a real run.

use crate::support::Workplace;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Compiles a source to `NAME.so` in the workplace; a relative one lies under `ffi`.
pub fn compile(workplace: &Workplace, source: &str, name: &str, flags: &[&str]) {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ffi");
    let (compiler, standard) =
        if source.ends_with(".cpp") { ("c++", "-std=c++17") } else { ("cc", "-std=c11") };
    let output = Command::new(compiler)
        .args([standard, "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,nodelete"])
        .args(flags)
        .arg("-I")
        .arg(ffi.join("include"))
        .arg(ffi.join(source))
        .arg("-o")
        .arg(workplace.path(&format!("{name}.so")))
        .args(["-lpthread", "-lm"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A workplace whose run uses a trainer of a library.
fn with_trainer(source: &str, flags: &[&str], trainer: &str) -> Workplace {
    let workplace = Workplace::new();
    compile(&workplace, source, "plugin", flags);
    let section = format!("plugins: {{paths: [plugin.so], trainer: {trainer}}}\n");
    let config = workplace.read("run.yaml") + &section;
    workplace.write("run.yaml", &config);
    workplace
}

const MISBEHAVES: &str = "loader/tests/plugins/misbehaves.c";

fn report(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap()
}

/// `nll_c` is `sft` in C: the tuned adapters are the same, byte for byte.
#[test]
fn a_trainer_in_c_trains_as_ours_does_and_the_report_names_its_library() {
    let ours = Workplace::new();
    ours.run();
    let theirs = with_trainer("examples/trainers.c", &[], "nll_c");
    theirs.run().expect_stderr("plugin trainers.c: a trainer in C");
    assert!(ours.adapter("out") == theirs.adapter("out"), "other bytes");

    let plan = theirs.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0).stdout;
    assert!(plan.contains("nll_c, 12 steps") && plan.contains("plugin.so"), "{plan}");
    let used = report(&theirs)["plugins"][0].clone();
    assert_eq!(used["kind"], "trainer");
    assert_eq!(used["name"], "nll_c");
    assert_eq!(used["library"], "example-trainers");
    assert_eq!(used["version"], "1.0.0");
    assert_eq!(used["path"], "plugin.so");
    let digest = Command::new("sha256sum").arg(theirs.path("plugin.so")).output().unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    assert_eq!(used["sha256"].as_str().unwrap(), &digest[..64]);
    let used = report(&ours)["plugins"][0].clone();
    assert_eq!(
        (&used["name"], &used["library"]),
        (&"sft".into(), &"forgelm_plugin_trainer".into())
    );
    theirs.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

/// In a process of its own or not: the same bytes, and the report says which.
#[test]
fn where_a_library_runs_changes_no_bit_and_another_trainer_is_another_run() {
    let apart = with_trainer("examples/trainers.c", &[], "nll_c");
    apart.run();
    assert_eq!(report(&apart)["plugins"][0]["isolation"], "process");
    let whole = with_trainer("examples/trainers.c", &[], "nll_c");
    whole.edit_config("paths:", "isolation: in_process, paths:");
    whole.run();
    assert_eq!(report(&whole)["plugins"][0]["isolation"], "in_process");
    assert!(apart.adapter("out") == whole.adapter("out"), "other bytes");
    let ours = Workplace::new();
    ours.write("run.yaml", &(ours.read("run.yaml") + "plugins: {isolation: process}\n"));
    ours.run();
    assert_eq!(report(&ours)["plugins"][0]["isolation"], "process");
    assert!(apart.adapter("out") == ours.adapter("out"), "other bytes");
    whole.edit_config(", trainer: nll_c", "");
    std::fs::remove_dir_all(whole.path("out/final_model")).unwrap();
    let ran = whole.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(1);
    assert!(ran.stderr.contains("written by another run"), "{}", ran.stderr);
}

/// Built with -ffast-math, changing the mode in a call, with a thread of its own: the same bytes.
#[test]
fn libraries_with_habits_of_their_own_change_no_bit_of_a_run() {
    let ours = Workplace::new();
    ours.run();
    let fast_math = &["-ffast-math", "-DFAST_MATH"][..];
    for flags in [fast_math, &["-DLOSS=float_mode"], &["-DLOSS=starts_thread"]] {
        let theirs = with_trainer(MISBEHAVES, flags, "misbehaves");
        let ran = theirs.run();
        assert!(ours.adapter("out") == theirs.adapter("out"), "{flags:?}: other bytes");
        if flags == fast_math {
            assert!(ran.stderr.contains("built with -ffast-math?"), "{}", ran.stderr);
        }
    }
}

#[test]
fn a_plugin_that_fails_ends_the_run_by_its_name_and_keeps_the_last_checkpoint() {
    let failing = with_trainer(MISBEHAVES, &["-DLOSS=long_failure"], "misbehaves");
    let ran = failing.forgelm(&["--config", "run.yaml"]).expect_code(2);
    assert!(ran.stderr.contains("trainer `misbehaves` of misbehaves 0.1.0 (plugin.so): it broke"));
    assert!(ran.stderr.contains("the last checkpoint is good"), "{}", ran.stderr);
    let diverging = with_trainer(MISBEHAVES, &["-DLOSS=nan_loss"], "misbehaves");
    let ran = diverging.forgelm(&["--config", "run.yaml"]).expect_code(2);
    assert!(ran.stderr.contains("step 1: the loss is NaN"), "{}", ran.stderr);
}

/// The end of a plugin's process, or none, is an error of the run: with the plugin's name, and with
/// the checkpoint of the step before.
#[test]
fn fault_110_a_plugin_that_ends_its_process_or_hangs_ends_the_run_and_keeps_the_checkpoint() {
    for (loss, expected) in [
        ("crashes", "killed by signal 11 (segmentation fault)"),
        ("aborts", "killed by signal 6 (abort)"),
        ("exits", "it ended the process with code 0"),
        ("hangs", "no sign of life for 1s, so its worker was killed"),
    ] {
        let workplace = with_trainer(MISBEHAVES, &[&format!("-DLOSS={loss}")], "misbehaves");
        workplace.edit_config("paths:", "deadline_seconds: 1, paths:");
        let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
        let by = "trainer `misbehaves` of misbehaves 0.1.0 (plugin.so): ";
        assert!(ran.stderr.contains(by), "{loss}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{loss}: {}", ran.stderr);
        assert!(ran.stderr.contains("the last checkpoint is good"), "{loss}: {}", ran.stderr);
    }
}

/// It cannot be ended there; who waits learns whom to blame, and what would help.
#[test]
fn a_plugin_that_hangs_in_the_program_is_named_while_it_does() {
    let workplace = with_trainer(MISBEHAVES, &["-DLOSS=dozes"], "misbehaves");
    workplace.edit_config("paths:", "isolation: in_process, deadline_seconds: 1, paths:");
    let ran = workplace.run();
    let expected = "warning: trainer `misbehaves` of misbehaves 0.1.0 (plugin.so): no sign of life for 1s, \
                    and the program cannot end it\n  hint: with `plugins.isolation: process`";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("no sign of life").count(), 1, "{}", ran.stderr);
}

/// A plugin that waits for the kernels does not hang, however long they take.
#[test]
fn long_work_of_the_kernels_is_no_silence_of_the_plugin_that_waits_for_it() {
    for isolation in ["in_process", "process"] {
        let workplace = with_trainer(MISBEHAVES, &["-DLOSS=waits_for_kernels"], "misbehaves");
        let keys = format!("isolation: {isolation}, deadline_seconds: 1, paths:");
        workplace.edit_config("paths:", &keys);
        let ran = workplace.run();
        assert!(!ran.stderr.contains("no sign of life"), "{isolation}: {}", ran.stderr);
    }
}

/// The kernels of the run and those of a process of its own, on as many threads.
#[test]
fn kernels_give_the_same_bits_in_the_program_and_in_a_process() {
    let metrics = |isolation: &str| {
        let flags = &["-DLOSS=kernel_metrics", "-DFEATURES=needs_kernels"];
        let workplace = with_trainer(MISBEHAVES, flags, "misbehaves");
        workplace.edit_config("paths:", &format!("isolation: {isolation}, paths:"));
        workplace.run();
        let lines = workplace.json_lines("out/metrics.jsonl");
        let line = lines.into_iter().find(|line| line.get("gemm").is_some()).unwrap();
        let names = ["dot", "threshold", "gemm", "rms_norm", "log_softmax_gather", "n_wrong"];
        names.map(|name| line[name].as_f64().unwrap().to_bits())
    };
    let found = metrics("process");
    assert_eq!(found[5], 0.0_f64.to_bits(), "calls that failed");
    assert_eq!(found, metrics("in_process"));
}

/// As many as the run has, not as many as the machine has cores.
#[test]
fn the_kernels_of_a_process_have_the_threads_of_the_run() {
    for n_threads in [1, 3] {
        let flags = ["-DLOSS=thread_metrics", &format!("-DEXPECTED={n_threads}")];
        let workplace = with_trainer(MISBEHAVES, &flags, "misbehaves");
        workplace.edit_config("threads: 1", &format!("threads: {n_threads}"));
        workplace.edit_config("max_steps: 12", "max_steps: 2");
        workplace.run();
        assert_eq!(report(&workplace)["plugins"][0]["isolation"], "process");
        let lines = workplace.json_lines("out/metrics.jsonl");
        let line = lines.iter().find(|line| line.get("threads_at_once").is_some()).unwrap();
        assert_eq!(line["threads_at_once"], f64::from(n_threads), "threads: {n_threads}");
    }
}

/// What the program knows and a plugin need not.
#[test]
fn the_process_of_a_plugin_has_no_secret_in_its_environment() {
    let workplace = with_trainer(MISBEHAVES, &["-DLOSS=tells_environment"], "misbehaves");
    let mut command = workplace.command(&["--config", "run.yaml"]);
    command.env("FORGELM_AUDIT_SECRET", "a secret of sixteen").env("HF_TOKEN", "hf_secret");
    let ran: crate::support::Ran = command.output().unwrap().into();
    let ran = ran.expect_code(0);
    assert!(ran.stderr.contains("plugin environment: PATH="), "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}

#[test]
fn a_trainer_that_cannot_be_used_is_refused_before_anything_starts() {
    let refused = |config: &str, expected: &str| {
        let workplace = Workplace::new();
        compile(&workplace, "examples/trainers.c", "plugin", &[]);
        workplace.write("run.yaml", &(workplace.read("run.yaml") + config));
        let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(1);
        assert!(ran.stderr.contains(expected), "no `{expected}` in:\n{}", ran.stderr);
        assert!(!workplace.path("out").exists(), "{config}: something was written");
    };
    refused(
        "plugins: {paths: [plugin.so], trainer: ipo_c}\n",
        "is for preference pairs, and `training.trainer_type: sft` reads texts",
    );
    refused("plugins: {trainer: nll_c}\n", "no trainer plugin is named `nll_c`; loaded: ");
    refused("plugins: {paths: [none.so]}\n", "none.so: cannot be read");
    refused("plugins: {paths: [data.jsonl]}\n", "data.jsonl: is not a shared library");
    let options = "plugins: {paths: [plugin.so], trainer: nll_c, trainer_options: [beta]}\n";
    refused(options, "`plugins.trainer_options`: `beta`; expected `key=value`");
    let options = "plugins: {paths: [plugin.so], trainer: nll_c, trainer_options: [beta=-1]}\n";
    refused(
        options,
        "`plugins.trainer`: `nll_c` of example-trainers 1.0.0 (plugin.so): the only option is `beta`",
    );
    let options = "plugins: {trainer_options: [beta=1]}\n";
    refused(options, "`plugins.trainer_options`: `beta=1` is for no trainer");
}

#[test]
fn fault_110_two_libraries_that_offer_one_name_are_both_named() {
    let workplace = Workplace::new();
    compile(&workplace, MISBEHAVES, "one", &["-DNAME=\"sft\"", "-DLIBRARY=\"one\""]);
    let list = workplace.forgelm(&["plugin", "list", "one.so"]).expect_code(1);
    let said = "two trainer plugins are named `sft`: one of forgelm_plugin_trainer ";
    assert!(list.stderr.contains(said), "{}", list.stderr);
    assert!(list.stderr.contains("one of one 0.1.0 (one.so)"), "{}", list.stderr);
}

#[test]
fn plugin_list_says_what_is_loaded_from_where() {
    let workplace = Workplace::new();
    let text = workplace.forgelm(&["plugin", "list"]).expect_code(0).stdout;
    assert!(text.contains("libforgelm_plugin_trainer.so"), "{text}");
    assert!(text.contains("ABI 1.0, ships with the program"), "{text}");
    std::fs::create_dir(workplace.path("more")).unwrap();
    compile(&workplace, "examples/trainers.c", "more/good", &[]);
    compile(&workplace, MISBEHAVES, "more/old", &["-DMAJOR=2"]);
    let mut command = workplace.command(&["plugin", "list", "--output-format", "json"]);
    let ran: crate::support::Ran =
        command.env("FORGELM_PLUGIN_PATH", "more").output().unwrap().into();
    let ran = ran.expect_code(1);
    let list = ran.json();
    let names: Vec<&str> = list["libraries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|library| library["name"].as_str().unwrap())
        .collect();
    let ours = ["evaluator", "merge_method", "quantizer", "reward", "trainer"];
    let ours = ours.map(|kind| format!("forgelm_plugin_{kind}"));
    assert_eq!(names[..5], ours.each_ref().map(|name| &**name));
    assert_eq!(names[5..], ["example-trainers"]);
    let bundled = [0, 1, 2, 3, 4, 5].map(|i| list["libraries"][i]["bundled"].as_bool().unwrap());
    assert_eq!(bundled, [true, true, true, true, true, false]);
    assert_eq!(list["libraries"][0]["plugins"][0]["name"], "held_out_loss");
    assert_eq!(list["libraries"][5]["plugins"][0]["name"], "ipo_c");
    let broken = list["broken"][0].as_str().unwrap();
    assert!(broken.starts_with("more/old.so: needs plugin ABI 2.0; this program has 1.0"));
    assert!(ran.stderr.contains(broken), "{}", ran.stderr);
}

#[test]
fn plugin_check_finds_a_gradient_that_is_not_the_slope() {
    let workplace = Workplace::new();
    compile(&workplace, "examples/trainers.c", "good", &[]);
    let ran = workplace.forgelm(&["plugin", "check", "good.so"]).expect_code(0);
    let held = ran.stdout.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(held, 14, "{}", ran.stdout);
    compile(&workplace, MISBEHAVES, "bad", &["-DLOSS=wrong_slope"]);
    let args = ["plugin", "check", "bad.so", "--output-format", "json"];
    let ran = workplace.forgelm(&args).expect_code(1);
    let findings = ran.json()["findings"].clone();
    let failed: Vec<&Value> =
        findings.as_array().unwrap().iter().filter(|f| f["outcome"] == "fails").collect();
    assert_eq!(failed.len(), 1, "{findings}");
    assert_eq!(failed[0]["property"], "has the slope of its loss as gradient");
    assert!(ran.stderr.contains("bad.so: 1 of 7 properties do not hold"), "{}", ran.stderr);
}

#[test]
fn plugin_check_of_a_library_that_crashes_is_a_finding() {
    let workplace = Workplace::new();
    compile(&workplace, MISBEHAVES, "needs", &["-DLOSS=thread_metrics"]);
    let ran = workplace.forgelm(&["plugin", "check", "needs.so"]).expect_code(1);
    assert!(ran.stdout.contains("does without the host's kernels"), "{}", ran.stdout);
    assert!(ran.stdout.contains("killed by signal 11 (segmentation fault)"), "{}", ran.stdout);
    assert!(ran.stderr.contains("needs.so: 1 of 7 properties do not hold"), "{}", ran.stderr);
    compile(&workplace, MISBEHAVES, "crashes", &["-DLOSS=crashes"]);
    let ran = workplace.forgelm(&["plugin", "check", "crashes.so"]).expect_code(1);
    assert!(ran.stdout.contains("killed by signal 11 (segmentation fault)"), "{}", ran.stdout);
    assert!(ran.stderr.contains("properties do not hold"), "{}", ran.stderr);
}

/// Neither is an option that the library refuses: exit 2 in a run, a finding in a check.
#[test]
fn a_process_that_dies_while_an_instance_is_made_is_told_as_such() {
    let workplace = with_trainer(MISBEHAVES, &["-DCREATE=aborts_in_create"], "misbehaves");
    let died = "its worker died: killed by signal 6 (abort)";
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
    assert!(ran.stderr.contains(died), "{}", ran.stderr);
    let ran = workplace.forgelm(&["plugin", "check", "plugin.so"]).expect_code(1);
    assert!(ran.stdout.contains(died), "{}", ran.stdout);
}

/// A plugin that reports all the time is asked to stop like one that is silent.
#[test]
fn a_signal_reaches_a_call_in_a_process_of_its_own() {
    let workplace = with_trainer(MISBEHAVES, &["-DLOSS=works_until_stopped"], "misbehaves");
    let child = workplace.start(&["--config", "run.yaml"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran: crate::support::Ran = child.wait_with_output().unwrap().into();
    assert!(ran.stderr.contains("stopped as asked"), "{}: {}", ran.code, ran.stderr);
}
