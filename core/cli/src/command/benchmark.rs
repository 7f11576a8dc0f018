//! `forgelm --config FILE --benchmark-only MODEL`.

use super::Context;
use crate::args::RunFlags;
use crate::terminal;
use forgelm_run::benchmark::only::benchmark_only;
use forgelm_run::exit::Exit;
use forgelm_run::plan::Plan;
use serde_json::json;
use std::path::Path;

/// Benchmarks a model that is there.
pub fn benchmark(plan: &Plan, model: &Path, flags: &RunFlags, context: &mut Context) -> Exit {
    let env = context.environment();
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        context.warning(&format!("signals will end this at once: {error}"));
    }
    match benchmark_only(plan, model, flags.offline, &env, &mut context.progress) {
        Err(error) => {
            let more = json!({"model_path": model, "failure_reason": error.chain()});
            context.refused_with(error.exit(), &error.chain(), &more)
        }
        Ok(benchmarked) => {
            let (exit, result) = (benchmarked.exit(), benchmarked.to_json());
            let text = format!("{}results  {}\n", benchmarked.table, benchmarked.file.display());
            let Some(reason) = benchmarked.verdict.reason() else {
                context.result(&text, &result);
                return exit;
            };
            if !context.is_json() {
                context.result(&text, &result);
            }
            context.refused_with(exit, &reason, &result)
        }
    }
}
