//! `forgelm --config FILE --merge`.

use super::Context;
use crate::args::{LogLevel, RunFlags};
use crate::progress::{bytes, duration};
use crate::terminal;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::merge::{self, Merged};
use forgelm_run::plan::Plan;
use forgelm_run::plugins;
use serde_json::{Value, json};
use std::time::Duration;

/// Merges the models of a plan.
pub fn merge(plan: &Plan, flags: &RunFlags, context: &mut Context) -> Exit {
    match execute(plan, flags, context) {
        Ok(merged) => {
            let mut envelope = about(plan);
            envelope["success"] = json!(true);
            envelope["error"] = Value::Null;
            envelope["run_id"] = json!(merged.run_id);
            envelope["config_hash"] = json!(merged.config_hash);
            envelope["metrics"] = json!(merged.metrics);
            context.result(&summary(plan, &merged), &envelope);
            Exit::Success
        }
        Err(error) => context.refused_with(error.exit(), &error.chain(), &about(plan)),
    }
}

fn execute(plan: &Plan, flags: &RunFlags, context: &mut Context) -> Result<Merged, RunError> {
    let env = context.environment();
    let mut plugins = plugins::load(plan, &env)?;
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        let text = format!("warning: a signal will leave a temporary folder behind: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    merge::merge(plan, flags.offline, &mut plugins, &env, &mut context.progress)
}

/// What the envelope says of a merge, whether it succeeded or not.
fn about(plan: &Plan) -> Value {
    let section = plan.run.merge.as_ref();
    json!({
        "method": plan.merge_method_name(),
        "num_models": section.map_or(0, |merge| merge.models.len()),
        "output_dir": section.map(|merge| merge.output_dir.clone()),
    })
}

/// What a person reads at the end.
fn summary(plan: &Plan, merged: &Merged) -> String {
    let metric = |name: &str| merged.metrics.get(name).copied().unwrap_or_default();
    let method = plan.merge_method_name().unwrap_or_default();
    let dir = merged.output_dir.display();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
    let size = bytes(metric("merge_bytes") as u64);
    format!(
        "merged    {} models by {method} in {}: {size}\nmodel     {dir}\nevidence  \
         {dir}/compliance (signed), {dir}/audit_log.jsonl\nverify    forgelm verify-bundle {dir}\n\
         next      forgelm chat {dir}\n",
        merged.n_models,
        duration(Duration::from_secs_f64(metric("merge_runtime"))),
    )
}
