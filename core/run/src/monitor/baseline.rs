//! What a run records for later comparisons: the losses of its held-out rows under the final model,
//! in `compliance/monitoring_baseline.json`, which is signed like every document.

use super::drift::Sample;
use crate::error::RunError;
use crate::evaluators::Examined;
use crate::plan::Plan;
use crate::subject::Subject;
use forgelm_config::{Run, load, resolved_json};
use forgelm_data::Sequences;
use forgelm_sdk::evaluator::HeldOut as _;
use serde_json::{Map, Value, json};

/// Version of the document.
const SCHEMA_VERSION: u64 = 1;
/// What is measured, for people.
const STATISTIC: &str = "negative log-probability of a row's trained tokens, mean over the tokens \
                         of the row, in nats";
/// The sections that decide how a row is read and scored.
const SCORING: [&str; 3] = ["model", "data", "training"];

/// A baseline that was read.
#[derive(Debug)]
pub(super) struct Baseline {
    pub(super) run_id: String,
    pub(super) held_out: Sample,
    /// As chat templates took it.
    pub(super) template_now: i64,
    pub(super) confidence: f64,
    pub(super) alert_on_drift: bool,
    pub(super) check_interval_hours: u64,
    /// The sections of [`SCORING`]; everything else has its default.
    pub(super) run: Run,
}

/// The loss of every row that has trained tokens.
///
/// # Errors
/// If a row cannot be read or scored.
pub(crate) fn row_losses(subject: Subject<'_>, rows: &Sequences) -> Result<Vec<f64>, RunError> {
    let examined = Examined::new(subject, rows)?;
    let n = usize::try_from(examined.n_records()).unwrap_or(usize::MAX);
    let scores = examined.score(0, n).map_err(super::MonitorError::Score)?;
    let scored = scores.iter().filter(|score| score.n_tokens > 0);
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    Ok(scored.map(|score| -score.logp_sum / score.n_tokens as f64).collect())
}

/// The document of a run, without what the evidence adds.
#[must_use]
pub(crate) fn document(
    plan: &Plan,
    run_id: &str,
    generated_at: &str,
    template_now: i64,
    held_out: &Sample,
) -> Option<Value> {
    let monitoring = plan.run.monitoring.as_ref().filter(|monitoring| monitoring.enabled)?;
    let config = resolved_json(&plan.run);
    let section = |name: &str| (name.to_owned(), config[name].clone());
    let scoring: Map<String, Value> = SCORING.into_iter().map(section).collect();
    Some(json!({
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "config_hash": plan.config_hash,
        "generated_at": generated_at,
        "statistic": STATISTIC,
        "held_out": held_out.to_json(),
        "confidence": monitoring.confidence,
        "alert_on_drift": monitoring.alert_on_drift,
        "check_interval_hours": monitoring.check_interval_hours,
        "template_now": template_now,
        "scoring": scoring,
    }))
}

impl Baseline {
    /// Reads a document that was verified.
    ///
    /// # Errors
    /// The member that is not as it should be.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value["schema_version"].as_u64() != Some(SCHEMA_VERSION) {
            let found = &value["schema_version"];
            return Err(format!("`schema_version` is {found}; expected {SCHEMA_VERSION}"));
        }
        let number = |of: &Value, key: &str| {
            of[key].as_f64().ok_or_else(|| format!("`{key}` is {}; expected a number", of[key]))
        };
        let count = |of: &Value, key: &str| {
            of[key].as_u64().ok_or_else(|| format!("`{key}` is {}; expected a count", of[key]))
        };
        let held_out = &value["held_out"];
        let held_out = Sample {
            n_rows: count(held_out, "n_rows")?,
            mean: number(held_out, "mean")?,
            variance: number(held_out, "variance")?,
        };
        let confidence = number(&value, "confidence")?;
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(format!("`confidence` is {confidence}; expected a share"));
        }
        // JSON is YAML, and a dumped config loads again.
        let run = load(&value["scoring"].to_string(), "scoring");
        let run = run.map_err(|problems| {
            problems.first().map_or_else(String::new, |problem| problem.message.clone())
        })?;
        Ok(Self {
            run_id: value["run_id"].as_str().ok_or("`run_id` is missing")?.to_owned(),
            held_out,
            template_now: value["template_now"].as_i64().ok_or("`template_now` is missing")?,
            confidence,
            alert_on_drift: value["alert_on_drift"].as_bool().unwrap_or(true),
            check_interval_hours: count(&value, "check_interval_hours")?.max(1),
            run: run.run,
        })
    }
}
