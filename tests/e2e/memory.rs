//! Runs under a memory ceiling: refused, squeezed, and measured against their plan.

use crate::evaluators::example_plugin;
use crate::support::{Ran, Workplace, conversation};
use serde_json::Value;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// 256 rows of which a step takes all, so that activations are most of what there is.
fn large_batch(batch_size: usize, accumulation: usize) -> Workplace {
    let workplace = Workplace::new();
    let rows: Vec<String> = (0..256).map(conversation).collect();
    workplace.write("data.jsonl", &(rows.join("\n") + "\n"));
    workplace.edit_config("max_steps: 12", "max_steps: 3");
    workplace.edit_config("save_steps: 4", "save_steps: 100");
    workplace.edit_config("eval_steps: 4", "eval_steps: 100");
    set_batch(&workplace, batch_size, accumulation);
    workplace
}

fn set_batch(workplace: &Workplace, batch_size: usize, accumulation: usize) {
    workplace.edit_config(
        "per_device_train_batch_size: 4\n  gradient_accumulation_steps: 1",
        &format!(
            "per_device_train_batch_size: {batch_size}\n  \
             gradient_accumulation_steps: {accumulation}"
        ),
    );
}

fn recover(workplace: &Workplace) {
    workplace.edit_config(
        "training:\n",
        "training:\n  oom_recovery: true\n  gradient_checkpointing: false\n",
    );
}

/// Runs the config with this many bytes for private data (`RLIMIT_DATA`).
fn run_under(workplace: &Workplace, limit: u64) -> Ran {
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={limit}")).arg(env!("CARGO_BIN_EXE_forgelm"));
    let program = workplace.command(&["--config", "run.yaml"]);
    command.args(program.get_args()).current_dir(workplace.path(".")).env_clear();
    command.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.output().unwrap().into()
}

fn recoveries(workplace: &Workplace) -> Vec<Value> {
    let lines = workplace.json_lines("out/audit_log.jsonl");
    lines.into_iter().filter(|line| line["event"] == "training.oom_recovery").collect()
}

/// The batch sizes that were tried, in order.
fn batch_sizes(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["new_batch_size"].as_u64().unwrap()).collect()
}

/// Lowers the ceiling until a run has to be cut into pieces; the workplace of that run.
fn squeezed_before_the_start() -> Workplace {
    for megabytes in (40..160).rev().step_by(6) {
        let workplace = large_batch(256, 1);
        recover(&workplace);
        let ran = run_under(&workplace, megabytes << 20);
        if ran.code == 8 {
            break;
        }
        let ran = ran.expect_code(0);
        // A run may also be cut in the middle only, when its plan just fits.
        if recoveries(&workplace).first().is_some_and(|event| event["step"] == 0) {
            ran.expect_stderr("memory is short before step 1:");
            return workplace;
        }
    }
    panic!("no ceiling under which the run is cut into pieces and fits");
}

#[test]
fn fault_067_068_a_ceiling_known_before_the_start_gives_the_result_of_the_smaller_batch() {
    let squeezed = squeezed_before_the_start();
    let events = recoveries(&squeezed);
    let sizes = batch_sizes(&events);
    for (event, pair) in events.iter().zip([&[256], sizes.as_slice()].concat().windows(2)) {
        assert_eq!(event["old_batch_size"], pair[0]);
        assert_eq!(pair[0], 2 * pair[1], "halved");
        assert_eq!(event["new_grad_accum"], 256 / pair[1], "the effective batch stays");
        assert_eq!(event["step"], 0);
    }
    let last = *sizes.last().unwrap();
    let small = large_batch(last as usize, 256 / last as usize);
    small.edit_config("training:\n", "training:\n  gradient_checkpointing: false\n");
    small.run();
    assert!(squeezed.adapter("out") == small.adapter("out"), "not the run of the smaller batch");
    let report: Value =
        serde_json::from_str(&squeezed.read("out/compliance/compliance_report.json")).unwrap();
    let parameters = &report["training_parameters"];
    assert_eq!(parameters["batch_size"], 256, "as configured");
    assert_eq!(parameters["oom_recovery"]["applied"], true);
    assert_eq!(parameters["oom_recovery"]["configured_batch_size"], 256);
    assert_eq!(parameters["oom_recovery"]["effective_batch_size"], last);
    assert_eq!(parameters["oom_recovery"]["effective_gradient_accumulation_steps"], 256 / last);
    squeezed.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

/// Whether a run under this ceiling was cut into pieces. It must end with an exit code of
/// ours, whatever the ceiling: the allocator that finds no room ends the process with a signal.
fn is_cut_under(workplace: &Workplace, limit: u64) -> bool {
    if workplace.path("out").exists() {
        std::fs::remove_dir_all(workplace.path("out")).unwrap();
    }
    let ran = run_under(workplace, limit);
    assert!(ran.code == 0 || ran.code == 8, "{limit} bytes: {}\n{}", ran.code, ran.stderr);
    ran.code == 8 || !recoveries(workplace).is_empty()
}

/// What asks for room before a step must not leave it where threads after the last one find none:
/// from the lowest ceiling under which a run is not cut on, every run ends well.
#[test]
fn fault_068_a_run_that_just_fits_saves_its_model() {
    const APART: u64 = 64 << 10;
    let workplace = large_batch(256, 1);
    recover(&workplace);
    let (mut cut, mut whole) = ((40 << 20) / APART, (160 << 20) / APART);
    assert!(!is_cut_under(&workplace, whole * APART));
    while whole - cut > 1 {
        let between = cut.midpoint(whole);
        *if is_cut_under(&workplace, between * APART) { &mut cut } else { &mut whole } = between;
    }
    for ceiling in whole - 2..whole + 10 {
        is_cut_under(&workplace, ceiling * APART);
    }
}

#[test]
fn fault_067_without_recovery_a_run_that_does_not_fit_is_refused_with_the_cheapest_change() {
    let workplace = large_batch(256, 1);
    workplace.edit_config("training:\n", "training:\n  gradient_checkpointing: false\n");
    let ran = run_under(&workplace, 60 << 20);
    let ran = ran.expect_code(8).expect_stderr("RLIMIT_DATA").expect_stderr("hint:");
    assert!(
        ran.stderr.contains("training.gradient_checkpointing: true")
            || ran.stderr.contains("training.per_device_train_batch_size"),
        "{}",
        ran.stderr
    );
    assert!(!workplace.path("out").exists(), "nothing was written");
}

#[test]
fn nothing_below_the_smallest_batch_is_tried() {
    let workplace = large_batch(256, 1);
    recover(&workplace);
    workplace.edit_config(
        "  oom_recovery: true\n",
        "  oom_recovery: true\n  oom_recovery_min_batch_size: 256\n",
    );
    run_under(&workplace, 60 << 20).expect_code(8).expect_stderr("bytes of memory");
    assert!(!workplace.path("out").exists());
}

#[test]
fn recomputed_activations_give_the_same_adapter() {
    let kept = Workplace::new();
    kept.edit_config("training:\n", "training:\n  gradient_checkpointing: false\n");
    kept.run();
    let again = Workplace::new();
    again.edit_config("training:\n", "training:\n  gradient_checkpointing: true\n");
    again.run();
    assert!(kept.adapter("out") == again.adapter("out"));
    let of = |workplace: &Workplace| -> Value {
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap()
    };
    for (workplace, is_recomputed) in [(&kept, false), (&again, true)] {
        assert_eq!(of(workplace)["training_parameters"]["gradient_checkpointing"], is_recomputed);
    }
}

/// Without a word in the config, activations are computed again where the run does not fit
/// otherwise: the bits stay.
#[test]
fn recomputation_is_chosen_by_the_plan() {
    let free = large_batch(256, 1);
    free.run();
    for megabytes in (40..160).rev().step_by(6) {
        let workplace = large_batch(256, 1);
        let ran = run_under(&workplace, megabytes << 20);
        if ran.code == 8 {
            break;
        }
        ran.expect_code(0);
        let events = recoveries(&workplace);
        if let Some(event) = events.first() {
            assert_eq!(event["gradient_checkpointing"], true);
            assert_eq!(
                (&event["old_batch_size"], &event["new_batch_size"]),
                (&256.into(), &256.into())
            );
            let report = workplace.read("out/compliance/compliance_report.json");
            let report: Value = serde_json::from_str(&report).unwrap();
            assert_eq!(report["training_parameters"]["gradient_checkpointing"], true);
            assert!(report["training_parameters"].get("oom_recovery").is_none());
            assert!(workplace.adapter("out") == free.adapter("out"));
            return;
        }
    }
    panic!("no ceiling under which activations are computed again");
}

fn wait_for_steps(workplace: &Workplace, n: usize, child: &mut Child) {
    let start = Instant::now();
    let path = workplace.path("out/metrics.jsonl");
    let steps = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"grad_norm\"")).count()
    };
    while steps() < n {
        assert!(start.elapsed() < PATIENCE, "no step {n}");
        assert!(child.try_wait().unwrap().is_none(), "ended before step {n}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The private data of a process, in bytes.
fn data_bytes(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn fault_068_a_ceiling_reached_in_the_middle_halves_the_batch_at_the_same_step() {
    let workplace = large_batch(256, 1);
    recover(&workplace);
    workplace.edit_config("max_steps: 3", "max_steps: 40");
    // An allocator that gives back what is freed at once: what it keeps could serve a step, and then
    // nothing needs to be done.
    let tunables = "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072";
    let mut command = workplace.command(&["--config", "run.yaml"]);
    let mut child = command.env("GLIBC_TUNABLES", tunables).spawn().unwrap();
    wait_for_steps(&workplace, 3, &mut child);
    // The least of many looks: for a moment before each step the process also holds what the step
    // asks for (16 MiB), and a ceiling above that is none. The step itself takes less than 1 MiB.
    let looks = (0..50).map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        data_bytes(&child)
    });
    let limit = looks.min().unwrap() + (1 << 20);
    let set = Command::new("prlimit")
        .args(["--pid", &child.id().to_string(), &format!("--data={limit}")])
        .status()
        .unwrap();
    assert!(set.success());
    let ran: Ran = child.wait_with_output().unwrap().into();
    ran.expect_code(0).expect_stderr("memory is short before step");
    let events = recoveries(&workplace);
    let step = events[0]["step"].as_u64().unwrap();
    assert!(step >= 3, "{events:?}");
    let sizes = batch_sizes(&events);
    assert_eq!(sizes[0], 128);
    let steps: Vec<u64> = workplace
        .json_lines("out/metrics.jsonl")
        .iter()
        .filter_map(|line| line.get("loss").and(line["step"].as_u64()))
        .collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>(), "each step once, in order");

    // Made again, it is cut at the same step.
    let made_again = workplace.forgelm(&["reproduce", "out", "--output", "again"]);
    assert!(made_again.expect_code(0).stdout.contains("steps 1 to 40 came out the same"));

    // Killed after the squeeze, a run continues from the step at which it happened, in the same
    // pieces and without a ceiling, and ends with the same bits.
    let adapter = workplace.adapter("out");
    for entry in std::fs::read_dir(workplace.path("out")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_later = name.strip_prefix("checkpoint-").is_some_and(|n| n != step.to_string());
        if is_later || name == "final_model" || name == "compliance" {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert!(workplace.adapter("out") == adapter, "resumed in other pieces");

    // Against a run that had the smaller batch from the start, only the order of additions in the
    // first steps differs.
    let small = large_batch(*sizes.last().unwrap() as usize, 256 / *sizes.last().unwrap() as usize);
    small.edit_config("max_steps: 3", "max_steps: 40");
    small.run();
    let losses = |workplace: &Workplace| -> Vec<f64> {
        let lines = workplace.json_lines("out/metrics.jsonl");
        lines.iter().filter_map(|line| line.get("loss")?.as_f64()).collect()
    };
    for (a, b) in losses(&workplace).iter().zip(losses(&small)) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}

#[test]
fn the_peak_is_within_a_tenth_of_the_plan() {
    peak_is_near_plan(&large_batch(256, 1));
}

/// Evaluators score 512 rows at once and write eight answers: more than small steps take, less than
/// large ones.
#[test]
fn what_evaluators_take_is_planned_where_steps_take_less() {
    let judged = |workplace: Workplace| {
        let section =
            "plugins: {paths: [truths.so], evaluators: [{name: held_out_loss}, {name: truths}]}\n";
        std::fs::copy(example_plugin(), workplace.path("truths.so")).unwrap();
        workplace.write("run.yaml", &(workplace.read("run.yaml") + section));
        workplace
    };
    let part = |workplace: &Workplace| {
        let ran = workplace.forgelm(&["--config", "run.yaml", "--fit-check"]).expect_code(0);
        let text = ran.stdout;
        text.lines().find(|line| line.contains("evaluators, beyond")).map(str::to_owned)
    };
    assert_eq!(part(&judged(large_batch(256, 1))), None, "nothing beyond the buffers of a step");
    let small = judged(Workplace::new());
    assert!(part(&small).is_some());
    peak_is_near_plan(&small);
}

fn peak_is_near_plan(workplace: &Workplace) {
    let check =
        workplace.forgelm(&["--config", "run.yaml", "--fit-check", "--output-format", "json"]);
    let check = check.expect_code(0).json();
    assert_eq!(check["success"], true);
    assert_eq!(check["hypothetical"], false);
    assert!(!workplace.path("out").exists(), "nothing was written");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    let result = ran.expect_code(0).json();
    let peak = result["resource_usage"]["memory_bytes_peak"].as_f64().unwrap();
    let planned = check["estimated_gb"].as_f64().unwrap() * f64::from(1 << 30);
    let rounding = 0.005 * f64::from(1 << 30);
    assert!((peak - planned).abs() < 0.1 * planned + rounding, "peak {peak}, planned {planned}");
}

#[test]
fn fit_check_reports_parts_verdict_and_the_cheapest_change() {
    let workplace = Workplace::new();
    let text = workplace.forgelm(&["--config", "run.yaml", "--fit-check"]).expect_code(0).stdout;
    for part in ["verdict", "FITS", "packed weights", "margin", "largest parts"] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    // A model that is not here is guessed from its name: 1 + 0.2 billion weights in 2 bytes.
    workplace.edit_config("name_or_path: model", "name_or_path: nobody/Nothing-1B");
    let args = ["--config", "run.yaml", "--fit-check", "--output-format", "json"];
    let guess = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!(guess["hypothetical"], true);
    let breakdown = &guess["breakdown"];
    assert_eq!(breakdown["estimated_param_count_b"], 1.14, "{guess}");
    assert_eq!(breakdown["base_model_gb"], 4.24, "float32 in the config");
    assert!(breakdown["estimation_caveat"].as_str().unwrap().contains("guessed"));
}

#[test]
fn fit_check_says_what_each_of_several_processes_takes() {
    let workplace = large_batch(2, 4);
    let section = "distributed: {strategy: fsdp, fsdp_strategy: full_shard}\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + section));
    let text = workplace.forgelm(&["--config", "run.yaml", "--fit-check"]).expect_code(0).stdout;
    for part in ["on 2 ", "on 4 ", "MiB each", "the estimate is that of one process"] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("on 8 "), "a step has four micro-batches:\n{text}");
    let args = ["--config", "run.yaml", "--fit-check", "--output-format", "json"];
    let check = workplace.forgelm(&args).expect_code(0).json();
    let numbers: Vec<_> = check["on_processes"].as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 2, "{check}");
    assert_eq!(numbers[1]["processes"], 4);
    assert!(numbers[1]["estimated_gb_each"].as_f64() <= check["estimated_gb"].as_f64());
}

#[test]
fn fit_check_names_a_change_that_fits_under_a_ceiling() {
    let workplace = large_batch(256, 1);
    let mut command = Command::new("prlimit");
    let program =
        workplace.command(&["--config", "run.yaml", "--fit-check", "--output-format", "json"]);
    command.arg(format!("--data={}", 60_u64 << 20)).arg(env!("CARGO_BIN_EXE_forgelm"));
    command.args(program.get_args()).current_dir(workplace.path(".")).env_clear();
    command.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let check = Ran::from(command.output().unwrap()).expect_code(0).json();
    assert_eq!(check["verdict"], "OOM", "{check}");
    let change = check["cheapest_change"]["change"].as_str().unwrap();
    assert!(change.contains("training."), "{check}");
    assert!(
        check["cheapest_change"]["estimated_gb"].as_f64() < check["estimated_gb"].as_f64(),
        "{check}"
    );
}
