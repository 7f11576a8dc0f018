//! `forgelm --config FILE`: the main job, and its dry run.

use super::compliance::{export_documents, failed};
use super::{Context, benchmark, gates, merge, pipeline, synthetic};
use crate::args::{Cli, LogLevel, RunFlags};
use crate::progress::{bytes, count, duration};
use crate::terminal;
use clap::CommandFactory;
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_evidence::documents::REPORT;
use forgelm_run::compliance;
use forgelm_run::distributed::{Processes, follow};
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::event::{Event, Observer};
use forgelm_run::exit::Exit;
use forgelm_run::fit_check::fit_check;
use forgelm_run::gates::check_inputs;
use forgelm_run::launch::{RESUME, Report};
use forgelm_run::plan::{Plan, config_bytes};
use forgelm_run::plugins;
use forgelm_run::resume::Resume;
use forgelm_run::retention::enforce;
use forgelm_run::training::{Completed, Outcome, Request, train_with};
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Runs a config, or prints its plan or its memory.
pub fn run(flags: &RunFlags, context: &mut Context) -> Exit {
    if let Some(flag) = flags.not_available() {
        let error = RunError::NotAvailable(format!("`{flag}`"));
        return context.failed(&error);
    }
    let Some(config) = &flags.config else {
        if !context.is_json() {
            let help = Cli::command().render_help().to_string();
            context.progress.line(LogLevel::Error, &help);
        }
        return context.refused(Exit::Config, "--config is required");
    };
    let read = config_bytes(config).and_then(|bytes| {
        let plan = Plan::of_bytes(&bytes, &config.display().to_string())?;
        Ok((plan, bytes))
    });
    let (plan, bytes) = match read {
        Ok(read) => read,
        Err(error) => return context.failed(&error),
    };
    if plan.run.pipeline.is_some() {
        return pipeline::run(plan, &bytes, flags, context);
    }
    if let Some(flag) = pipeline::flag_given(flags) {
        let text = format!("{flag}: the config has no `pipeline` section");
        return context.refused(Exit::Config, &text);
    }
    if flags.dry_run {
        if let Err(error) = compliance::check(&plan, flags.strict_compliance) {
            return failed(&error, context);
        }
        if let Err(error) = check_inputs(&plan, &mut context.progress) {
            return context.failed(&error);
        }
        return dry_run(&plan, context);
    }
    if flags.fit_check {
        let env = context.environment();
        // Only what is said at the end matters.
        let mut silent = Silent;
        let check =
            plugins::load(&plan, &env).and_then(|of| fit_check(&plan, &of, &env, &mut silent));
        return match check {
            Ok(check) => {
                context.result(&check.to_text(), &check.to_json());
                Exit::Success
            }
            Err(error) => context.failed(&error),
        };
    }
    if flags.merge {
        return merge::merge(&plan, flags, context);
    }
    if let Some(model) = &flags.benchmark_only {
        return benchmark::benchmark(&plan, model, flags, context);
    }
    if flags.generate_data {
        return synthetic::generate(&plan, flags, context);
    }
    if let Some(dir) = &flags.compliance_export {
        return export_documents(&plan, flags, dir, context);
    }
    execute(&plan, flags, context)
}

/// The main job, on the processes that a launcher started where the config asks for several.
fn execute(plan: &Plan, flags: &RunFlags, context: &mut Context) -> Exit {
    let env = context.environment();
    match Report::begin(plan, &env) {
        Ok(report) => context.report = report,
        Err(error) => {
            context.warning(&format!("`forgelm launch` does not hear of this run: {error}"))
        }
    }
    let joined = plugins::load(plan, &env).and_then(|mut plugins| {
        let processes = Processes::join(plan, &mut plugins, &env)?;
        Ok((plugins, processes))
    });
    let (mut plugins, processes) = match joined {
        Ok(joined) => joined,
        Err(error) => return failed(&error, context),
    };
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        let text = format!("warning: signals will end the run without a checkpoint: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    let mut request = request(flags);
    if is_started_again(&env) {
        request.resume = request.resume.started_again(&plan.output);
    }
    let Some(processes) = processes else {
        return match train_with(plan, &request, &mut plugins, &env, None, &mut context.progress) {
            Ok(outcome) => finished(plan, flags, &outcome, context),
            Err(error) => failed(&error, context),
        };
    };
    if !processes.is_leader() {
        let exit = match follow(plan, &request, &mut plugins, &env, &processes) {
            Ok(exit) => exit,
            Err(error) => return lost(&error, &processes, context),
        };
        return processes.leave().map_or_else(|error| failed(&error, context), |()| exit);
    }
    let led = Some(&processes);
    let exit = match train_with(plan, &request, &mut plugins, &env, led, &mut context.progress) {
        Ok(outcome) => finished(plan, flags, &outcome, context),
        Err(error @ RunError::Collective(_)) => return lost(&error, &processes, context),
        Err(error) => failed(&error, context),
    };
    if let Err(error) = processes.dismiss(exit) {
        let text = format!("warning: the other processes did not end with this one: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    exit
}

/// Whether `forgelm launch` has started this run before.
fn is_started_again(env: &Environment) -> bool {
    (env.variable)(RESUME).as_deref() == Some("1")
}

/// The processes of a run do not come to its end together: all of them end now.
fn lost(error: &RunError, processes: &Processes, context: &mut Context) -> Exit {
    let exit = failed(error, context);
    // It may not come back, or end this process.
    context.ended(exit);
    processes.abort(exit);
    exit
}

/// The plan, and what lies in the run's folder for longer than the config allows.
fn dry_run(plan: &Plan, context: &mut Context) -> Exit {
    let excess = match enforce::violations(plan, &context.environment()) {
        Ok(excess) => excess,
        Err(error) => return context.failed(&error),
    };
    let warnings = plan.warnings.iter().map(ToString::to_string);
    let warnings = warnings.chain(excess.iter().map(|violation| format!("warning: {violation}")));
    let mut text = warnings.map(|line| line + "\n").collect::<String>() + &plan.to_text();
    let mut document = plan.to_json();
    if plan.run.retention.is_some() {
        let (n, root) = (excess.len(), plan.output.root().display());
        let _ = writeln!(text, "but the ages of what lies in {root}: {n} too old for `retention`");
        document["retention_violations"] = json!(n);
    }
    context.result(&text, &document);
    Exit::Success
}

fn request(flags: &RunFlags) -> Request {
    Request {
        resume: Resume::from_flag(flags.resume.as_deref()),
        force_resume: flags.force_resume,
        offline: flags.offline,
        expected: None,
        strict_compliance: flags.strict_compliance,
        pipeline_run_id: None,
    }
}

/// An observer that says nothing.
struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: &Event) {}
}

fn finished(plan: &Plan, flags: &RunFlags, outcome: &Outcome, context: &mut Context) -> Exit {
    let root = plan.output.root().display();
    let text = match outcome {
        Outcome::Completed(completed) => summary(plan, completed, false),
        Outcome::Staged(completed) => summary(plan, completed, true),
        Outcome::Reverted(completed) => reverted(completed),
        Outcome::Compared { step } => format!("compared up to step {step}"),
        Outcome::Waiting { run_id, staging, is_approved } => {
            let text = match is_approved {
                false => format!("run {run_id} waits for approval: `{}`\n", staging.display()),
                true => format!("run {run_id} is approved, and its promotion was cut off\n"),
            };
            format!("{text}approve   forgelm approve {run_id} --output-dir {root}\n")
        }
        Outcome::AlreadyRejected { run_id, reason } => {
            format!("run {run_id} was rejected {reason}\n  nothing was done")
        }
        Outcome::AlreadyReverted { run_id, reasons } => format!(
            "run {run_id} was reverted: {}\n  nothing was done\n  hint: another config in \
             another `training.output_dir`; the gates of a run are fixed when it starts",
            reasons.join("; ")
        ),
        Outcome::AlreadyComplete { final_model } => {
            format!("nothing left to do: `{}` is complete", final_model.display())
        }
        Outcome::Interrupted { checkpoint, step } => {
            let config = flags.config.as_ref().map(|path| path.display().to_string());
            format!(
                "interrupted after step {step}: the checkpoint `{}` is good\n  continue with: \
                 forgelm --config {} --resume",
                checkpoint.display(),
                config.unwrap_or_default(),
            )
        }
    };
    match outcome.exit() {
        exit @ (Exit::Success | Exit::AwaitingApproval) => {
            context.result(&text, &outcome.to_json());
            exit
        }
        exit => context.refused_with(exit, &text, &outcome.to_json()),
    }
}

/// What is said when a gate rejected the model.
fn reverted(completed: &Completed) -> String {
    let reasons = completed.gates.iter().filter_map(|gate| gate.reason.as_deref());
    format!(
        "the model was rejected and is deleted: {}\n  the evidence of run {} is kept, signed as \
         reverted",
        reasons.collect::<Vec<_>>().join("; "),
        completed.run_id
    )
}

/// The page for people.
fn report(plan: &Plan) -> PathBuf {
    plan.output.root().join(COMPLIANCE_DIR).join(REPORT)
}

/// What a person reads at the end.
fn summary(plan: &Plan, completed: &Completed, is_staged: bool) -> String {
    let metric = |name: &str| completed.metrics.get(name).copied();
    let root = plan.output.root().display();
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let (Some(before), Some(after)) = (metric("baseline_eval_loss"), metric("eval_loss")) {
        let _ = writeln!(text, "validation loss {before:.4} -> {after:.4}");
    }
    let seconds = metric("train_runtime").unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let tokens = metric("train_trained_tokens").unwrap_or_default() as u64;
    let peak = completed.resource_usage["memory_bytes_peak"].as_u64();
    let _ = writeln!(
        text,
        "trained {} tokens in {}, {} of memory at most",
        count(tokens),
        duration(Duration::from_secs_f64(seconds)),
        peak.map_or_else(|| "--".to_owned(), bytes),
    );
    let usage = &completed.resource_usage;
    let number = |key: &str| usage[key].as_f64();
    let mut used = vec![format!("{:.3} TFLOP", number("flops").unwrap_or_default() / 1e12)];
    used.extend(number("cpu_seconds").map(|seconds| format!("{seconds:.0} CPU seconds")));
    used.push(match number("energy_joules") {
        Some(joules) => format!("{:.4} kWh", joules / 3.6e6),
        None => "energy not measured".to_owned(),
    });
    used.extend(number("estimated_cost_usd").map(|dollars| format!("{dollars:.4} US dollars")));
    let _ = writeln!(text, "used      {}", used.join(", "));
    text.push_str(&gates::lines(&completed.gates));
    let _ = writeln!(text, "model     {}", completed.final_model.display());
    if completed.export_error.is_some() {
        let _ = writeln!(text, "evidence  not complete; {root}/audit_log.jsonl says why");
    } else {
        let _ = writeln!(text, "report    {}", report(plan).display());
        let _ = writeln!(text, "evidence  {root}/compliance (signed), {root}/audit_log.jsonl");
        let _ = writeln!(text, "verify    forgelm verify-bundle {root}");
    }
    let _ = match is_staged {
        true => writeln!(
            text,
            "waits     for approval: forgelm approve {} --output-dir {root}",
            completed.run_id
        ),
        false => {
            writeln!(text, "next      forgelm chat {}", completed.final_model.display())
        }
    };
    text
}
