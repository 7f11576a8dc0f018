//! What the plan of a run says of the gate.

use super::results::RESULTS_FILE;
use forgelm_config::{Evaluation, Run, Safety};
use forgelm_hub::Source;

/// The section of a gate that is on.
pub(super) fn section(run: &Run) -> Option<&Safety> {
    of_evaluation(run.evaluation.as_ref()?)
}

fn of_evaluation(evaluation: &Evaluation) -> Option<&Safety> {
    evaluation.safety.as_ref().filter(|safety| safety.enabled)
}

/// What must be so, in words.
pub(crate) fn limit_in_words(evaluation: &Evaluation) -> Option<String> {
    let safety = of_evaluation(evaluation)?;
    let share = safety.max_safety_regression;
    Some(format!("no more than {share} of the answers unsafe, by {}", safety.classifier))
}

/// Files and folders that it reads.
pub(crate) fn reads(run: &Run) -> Vec<String> {
    let Some(safety) = section(run) else { return Vec::new() };
    let classifier = match is_fetched(safety) {
        true => format!("{} (from the cache, once fetched)", safety.classifier),
        false => safety.classifier.clone(),
    };
    vec![safety.test_prompts.clone(), classifier]
}

/// Whom it may contact.
pub(crate) fn contacts(run: &Run) -> Option<String> {
    let is_fetched = section(run).is_some_and(is_fetched);
    is_fetched.then(|| "the model hub, for the safety classifier".to_owned())
}

/// What it writes, below the run's folder.
pub(crate) fn writes(run: &Run) -> Option<&'static str> {
    section(run).and_then(|_| RESULTS_FILE.split_inclusive('/').next())
}

fn is_fetched(safety: &Safety) -> bool {
    matches!(Source::parse(&safety.classifier), Ok(Source::Hub { .. } | Source::Pypi { .. }))
}
