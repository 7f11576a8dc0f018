//! `forgelm --config FILE` where the config has a `pipeline` section.

use super::Context;
use crate::args::{LogLevel, RunFlags};
use crate::terminal;
use forgelm_run::distributed::refuse_many;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::pipeline::error::PipelineError;
use forgelm_run::pipeline::{self, Ended, PipelinePlan, Request, What};
use forgelm_run::plan::Plan;
use forgelm_run::retention::enforce;
use serde_json::json;
use std::path::Path;

/// The first flag given that only pipelines have. An empty name of a model counts as none.
pub fn flag_given(flags: &RunFlags) -> Option<&'static str> {
    let given = [
        (flags.stage.is_some(), "--stage"),
        (flags.resume_from.is_some(), "--resume-from"),
        (input_model(flags).is_some(), "--input-model"),
    ];
    given.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
}

fn input_model(flags: &RunFlags) -> Option<&String> {
    flags.input_model.as_ref().filter(|model| !model.is_empty())
}

/// Runs a pipeline, or prints its plan.
pub fn run(root: Plan, bytes: &[u8], flags: &RunFlags, context: &mut Context) -> Exit {
    let what = match what(flags) {
        Ok(what) => what,
        Err(text) => return context.failed(&PipelineError::Flags(text).into()),
    };
    let plan = match PipelinePlan::of(root, bytes, flags.strict_compliance) {
        Ok(plan) => plan,
        Err(error) => return refused(&error, context),
    };
    if flags.dry_run {
        return dry_run(&plan, context);
    }
    let why = "the stages of a pipeline run in one process in this version";
    if let Err(error) = refuse_many(&context.environment(), why) {
        return context.failed(&error);
    }
    let request = Request {
        what,
        force_resume: flags.force_resume,
        offline: flags.offline,
        strict_compliance: flags.strict_compliance,
    };
    let env = context.environment();
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        let text = format!("warning: signals will end the run without a checkpoint: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    match pipeline::run(&plan, &request, &env, &mut context.progress) {
        Ok(ended) => finished(&ended, context),
        Err(error) => refused(&error, context),
    }
}

fn dry_run(plan: &PipelinePlan, context: &mut Context) -> Exit {
    let excess = match enforce::violations(&plan.root, &context.environment()) {
        Ok(excess) => excess,
        Err(error) => return context.failed(&error),
    };
    let warnings = plan.root.warnings.iter().map(|warning| format!("{warning}\n"));
    let old = excess.iter().map(|violation| format!("warning: {violation}\n"));
    let mut text = warnings.chain(old).collect::<String>() + &plan.to_text();
    let mut document = plan.to_json();
    if plan.root.run.retention.is_some() {
        let n = excess.len();
        text.push_str(&format!(
            "but the ages of what lies in the folders of the pipeline: {n} too old for `retention`\n"
        ));
        document["retention_violations"] = json!(n);
    }
    context.result(&text, &document);
    Exit::Success
}

/// A plan that cannot be run says every reason; with JSON, each in a list.
fn refused(error: &RunError, context: &mut Context) -> Exit {
    match error {
        RunError::Pipeline(PipelineError::Plan(problems)) => {
            let more = json!({"stages": [], "errors": problems});
            context.refused_with(error.exit(), &error.chain(), &more)
        }
        _ => context.failed(error),
    }
}

fn finished(ended: &Ended, context: &mut Context) -> Exit {
    match ended.error() {
        None => context.result(&ended.to_text(), &ended.to_json()),
        Some(error) => {
            if !context.is_json() {
                context.result(&ended.to_text(), &ended.to_json());
            }
            let mut more = ended.to_json();
            // The envelope has its own.
            more.as_object_mut().map(|members| members.remove("success"));
            context.refused_with(ended.exit, &error, &more);
        }
    }
    ended.exit
}

/// What the flags ask for; a sentence for those that do not go together.
fn what(flags: &RunFlags) -> Result<What, String> {
    let alone = [
        (flags.fit_check, "--fit-check"),
        (flags.merge, "--merge"),
        (flags.generate_data, "--generate-data"),
        (flags.compliance_export.is_some(), "--compliance-export"),
        (flags.benchmark_only.is_some(), "--benchmark-only"),
    ];
    if let Some((_, flag)) = alone.into_iter().find(|(is_given, _)| *is_given) {
        return Err(format!(
            "{flag}: is for one training, and the config has a `pipeline` section\n  hint: remove the \
             flag, or the section"
        ));
    }
    let resumes = flags.resume.is_some() || flags.resume_from.is_some();
    if flags.force_resume && !resumes {
        return Err("--force-resume: expected --resume or --resume-from with it".to_owned());
    }
    let input_model = input_model(flags).cloned();
    match (&flags.stage, &flags.resume_from, &flags.resume, input_model) {
        (Some(_), Some(_), _, _) => {
            Err("--stage and --resume-from: expected one of them".to_owned())
        }
        (Some(_), _, Some(_), _) => Err("--stage and --resume: expected one of them".to_owned()),
        (_, Some(_), Some(_), _) => {
            Err("--resume-from and --resume: expected one of them".to_owned())
        }
        (None, _, _, Some(_)) => {
            Err("--input-model: is for one stage\n  hint: name it with `--stage`".to_owned())
        }
        (Some(stage), None, None, input_model) => {
            Ok(What::Only { stage: stage.clone(), input_model })
        }
        (None, Some(name), None, None) => Ok(What::From(name.clone())),
        (None, None, Some(path), None) if path == Path::new("auto") => Ok(What::Rest),
        (None, None, Some(path), None) => Err(format!(
            "--resume {}: a pipeline goes on from what its stages left\n  hint: `--resume` without a \
             folder, or `--resume-from STAGE`",
            path.display()
        )),
        (None, None, None, None) => Ok(What::Whole),
    }
}
