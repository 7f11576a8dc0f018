//! `forgelm score`.

use super::Context;
use crate::args::score::ScoreArgs;
use crate::progress::count;
use forgelm_config::ComputeDtype;
use forgelm_run::exit::Exit;
use forgelm_run::model::ModelRequest;
use forgelm_run::score;
use serde_json::json;

/// Scores the rows of a file.
pub fn score(args: &ScoreArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    let request = ModelRequest {
        adapter: args.adapter.clone(),
        offline: args.offline,
        compute: compute_dtype(&args.compute_dtype),
        device: args.device,
        ..ModelRequest::named(&args.model)
    };
    match score::score(&request, &args.input, &args.output, &env, &mut context.progress) {
        Err(error) => context.failed(&error),
        Ok(summary) => {
            let text = format!(
                "{} rows, {} tokens scored: {}",
                count(summary.n_rows),
                count(summary.n_scored),
                args.output.display()
            );
            context.result(
                &text,
                &json!({
                    "success": true,
                    "rows": summary.n_rows,
                    "tokens_scored": summary.n_scored,
                    "output": args.output,
                }),
            );
            Exit::Success
        }
    }
}

/// The format that a flag names; the parser allows no other words.
fn compute_dtype(word: &str) -> ComputeDtype {
    match word {
        "float32" => ComputeDtype::Float32,
        "bfloat16" => ComputeDtype::Bfloat16,
        _ => ComputeDtype::Auto,
    }
}
