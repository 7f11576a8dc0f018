//! `forgelm reproduce`: a finished run made again, and compared step by step.

use super::{Context, verify};
use crate::args::reproduce::ReproduceArgs;
use crate::args::{LogLevel, VerifyBundleArgs};
use crate::terminal;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::plugins;
use forgelm_run::reproduce::{ReproduceRequest, Reproduction, Same};
use forgelm_run::training::train;

/// Verifies the evidence of a run, then makes the run again.
pub fn reproduce(args: &ReproduceArgs, context: &mut Context) -> Exit {
    let bundle = VerifyBundleArgs { dir: args.run.clone(), trust: args.trust.clone() };
    if let Some(refused) = verify::refused_bundle(&bundle, context) {
        return refused;
    }
    match run(args, context) {
        Ok(same) => {
            context.result(&same.to_text(), &same.to_json());
            Exit::Success
        }
        Err(error) => context.failed(&error),
    }
}

fn run(args: &ReproduceArgs, context: &mut Context) -> Result<Same, RunError> {
    let reproduction = Reproduction::of(&ReproduceRequest {
        run: args.run.clone(),
        output: args.output.clone(),
        steps: args.steps.clone(),
        model: args.model.clone(),
        data: args.data.clone(),
        offline: args.offline,
    })?;
    context.progress.line(LogLevel::Info, &reproduction.to_text());
    let env = context.environment();
    let mut plugins = plugins::load(&reproduction.plan, &env)?;
    plugins.choose_kernels(reproduction.kernels())?;
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        context.warning(&format!("signals will end the run without a word: {error}"));
    }
    let (plan, request) = (&reproduction.plan, &reproduction.request);
    let outcome = train(plan, request, &mut plugins, &env, &mut context.progress)?;
    reproduction.finish(&outcome)
}
