//! `forgelm --config FILE --generate-data`.

use super::Context;
use crate::args::{LogLevel, RunFlags};
use crate::progress::duration;
use crate::terminal;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::plan::Plan;
use forgelm_run::synthetic::{self, Generated};
use serde_json::{Value, json};
use std::time::Duration;

/// Generates the rows of a plan.
pub fn generate(plan: &Plan, flags: &RunFlags, context: &mut Context) -> Exit {
    let generated = match execute(plan, flags, context) {
        Ok(generated) => generated,
        Err(error) => {
            let section = plan.run.synthetic.as_ref();
            let output_file = section.map(|section| section.output_file.clone());
            let about = json!({"output_file": output_file});
            return context.refused_with(error.exit(), &error.chain(), &about);
        }
    };
    if generated.is_enough() {
        context.result(&summary(&generated), &envelope(&generated));
        return Exit::Success;
    }
    let mut text = format!(
        "{} of {} prompts have a row; `synthetic.min_success_rate` is {}",
        generated.n_rows, generated.n_total, generated.min_success_rate
    );
    for error in &generated.errors {
        text.push_str(&format!("\n  {error}"));
    }
    text.push_str("\n  hint: the same command asks again for what is missing");
    context.refused_with(Exit::Runtime, &text, &envelope(&generated))
}

fn execute(plan: &Plan, flags: &RunFlags, context: &mut Context) -> Result<Generated, RunError> {
    let env = context.environment();
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        let text = format!("warning: signals will end this at once: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    synthetic::generate(plan, flags.offline, &env, &mut context.progress)
}

/// A number with so many digits after the point, as a number.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

fn envelope(generated: &Generated) -> Value {
    json!({
        "success": generated.is_enough(),
        "total_prompts": generated.n_total,
        "successful": generated.n_rows,
        "failed": generated.n_total - generated.n_rows,
        "success_rate": rounded(generated.success_rate(), 4),
        "min_success_rate": generated.min_success_rate,
        "output_file": generated.output_file,
        "manifest_file": generated.manifest,
        "already_there": generated.n_before,
        "cut_off": generated.n_cut,
        "duration_seconds": rounded(generated.seconds, 2),
        "errors": generated.errors,
    })
}

/// What a person reads at the end.
fn summary(generated: &Generated) -> String {
    let (rows, manifest) = (generated.output_file.display(), generated.manifest.display());
    let mut text = format!(
        "generated {} rows in {}; {} of {} prompts have one\n",
        generated.n_rows - generated.n_before,
        duration(Duration::from_secs_f64(generated.seconds)),
        generated.n_rows,
        generated.n_total,
    );
    for error in &generated.errors {
        text.push_str(&format!("missing   {error}\n"));
    }
    text.push_str(&format!(
        "rows      {rows}\nevidence  {manifest} (signed), {rows}.provenance.jsonl\n\
         verify    forgelm verify-signature {manifest}\n"
    ));
    text
}
