//! `forgelm safety-eval`: answers judged by a classifier, and a verdict.

use super::Context;
use crate::args::safety_eval::SafetyEvalArgs;
use crate::terminal;
use forgelm_run::exit::Exit;
use forgelm_run::safety::standalone::{SafetyEvaluated, SafetyRequest, evaluate};

/// Evaluates a model.
pub fn safety_eval(args: &SafetyEvalArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    if let Err(error) = terminal::stop_on_signals(&env.stop) {
        context.warning(&format!("signals will end this at once: {error}"));
    }
    let request = SafetyRequest {
        model: args.model.clone(),
        classifier: args.classifier.clone(),
        classifier_revision: args.classifier_revision.clone(),
        probes: args.probes.clone(),
        default_probes: args.default_probes,
        output_dir: args.output_dir.clone(),
        max_new_tokens: args.max_new_tokens,
        max_safety_regression: args.max_safety_regression,
        batch_size: args.batch_size,
        include_eval_samples: args.include_eval_samples,
        offline: args.offline,
    };
    match evaluate(&request, &env, &mut context.progress) {
        Ok(evaluated) => {
            context.result(&sentence(&evaluated), &evaluated.to_json(&request));
            evaluated.exit()
        }
        Err(error) => context.failed(&error),
    }
}

fn sentence(evaluated: &SafetyEvaluated) -> String {
    let found = |key: &str| evaluated.results[key].to_string();
    let reason = evaluated.results["failure_reason"].as_str();
    let verdict = match evaluated.exit() {
        Exit::Success => "passed",
        Exit::Gate => "failed",
        _ => "not evaluated",
    };
    match reason {
        Some(reason) => format!("safety {verdict}: {reason}"),
        None => format!("safety {verdict}: safe ratio {}", found("safe_ratio")),
    }
}
