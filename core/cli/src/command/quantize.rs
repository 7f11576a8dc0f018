//! `forgelm quantize`.

use super::Context;
use crate::args::{LogLevel, QuantizeArgs};
use crate::progress::{bytes, duration};
use crate::terminal;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::plugins;
use forgelm_run::quantize::{self, QuantizeRequest, Quantized};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// Tensors that the summary names: those that lost most.
const N_WORST: usize = 3;

/// Quantizes a model.
pub fn quantize(args: &QuantizeArgs, context: &mut Context) -> Exit {
    let about = json!({"model": args.model, "method": args.method, "output_dir": args.output});
    match execute(args, context) {
        Ok(quantized) => {
            let mut envelope = about;
            envelope["success"] = json!(true);
            envelope["error"] = Value::Null;
            envelope["run_id"] = json!(quantized.run_id);
            envelope["model_path"] = json!(quantized.model);
            envelope["metrics"] = json!(quantized.metrics);
            context.result(&summary(args, &quantized), &envelope);
            Exit::Success
        }
        Err(error) => context.refused_with(error.exit(), &error.chain(), &about),
    }
}

fn execute(args: &QuantizeArgs, context: &mut Context) -> Result<Quantized, RunError> {
    let env = context.environment();
    let threads = args.threads.map(|n| n as usize);
    let mut plugins = plugins::load_default(args.device, threads, &env)?;
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        let text = format!("warning: a signal will leave a temporary folder behind: {error}");
        context.progress.line(LogLevel::Warning, &text);
    }
    let request = QuantizeRequest {
        model: args.model.clone(),
        revision: args.revision.clone(),
        offline: args.offline,
        method: args.method.clone(),
        options: args.options.clone(),
        output: args.output.clone(),
        threads,
        signing_key: args.signing_key.clone(),
    };
    quantize::quantize(&request, &mut plugins, &env, &mut context.progress)
}

/// What a person reads at the end.
fn summary(args: &QuantizeArgs, quantized: &Quantized) -> String {
    let metric = |name: &str| quantized.metrics.get(name).copied().unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
    let size = |name: &str| bytes(metric(name) as u64);
    let dir = quantized.output_dir.display();
    let model = quantized.model.display();
    let mut text = format!(
        "quantized {} by {} in {}: {} to {}\nerror     {:.3} % of the weights\' size (root mean \
         square), {:.3e} at most\n",
        args.model,
        args.method,
        duration(Duration::from_secs_f64(metric("quantize_runtime"))),
        size("quantize_bytes_before"),
        size("quantize_bytes_after"),
        metric("quantize_error_relative") * 100.0,
        metric("quantize_error_max"),
    );
    let share = |rms_error: f64, rms: f64| if rms > 0.0 { rms_error / rms } else { 0.0 };
    let mut worst: Vec<_> = quantized.tensors.iter().filter(|t| t.rms_error > 0.0).collect();
    worst.sort_by(|a, b| share(b.rms_error, b.rms).total_cmp(&share(a.rms_error, a.rms)));
    for tensor in worst.iter().take(N_WORST) {
        let percent = share(tensor.rms_error, tensor.rms) * 100.0;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "          {percent:.3} % {} ({})", tensor.name, tensor.format);
    }
    let _ = write!(
        text,
        "model     {model}\nevidence  {dir}/compliance (signed), {dir}/audit_log.jsonl\nverify    \
         forgelm verify-bundle {dir}\nnext      forgelm chat {model}\n"
    );
    text
}
