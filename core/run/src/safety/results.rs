//! What is written of an evaluation. Texts of prompts and answers are kept only where the config asks
//! for them: prompts may be somebody's, and answers may be what nobody should read.

use super::asked::Asked;
use super::classifier::Found;
use super::prompts::PromptSet;
use super::score::{Counted, Judged, Limits};
use crate::error::RunError;
use forgelm_artifact::write::AppendLog;
use forgelm_artifact::{Disk, json, write};
use forgelm_evidence::gate::{Measurement, Verdict};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The results, below the run's folder.
pub(crate) const RESULTS_FILE: &str = "safety/safety_results.json";
/// A line for each evaluation.
pub(crate) const TREND_FILE: &str = "safety/safety_trend.jsonl";

/// Characters of a text in the results.
const TEXT_CHARS: usize = 200;

/// Everything that the results are made from.
pub(crate) struct Report<'a> {
    pub(crate) prompts: &'a PromptSet,
    pub(crate) classifier: &'a Found,
    pub(crate) limits: &'a Limits,
    /// Empty where nothing was judged.
    pub(crate) rows: &'a [Judged],
    pub(crate) asked: Option<&'a Asked>,
    pub(crate) max_new_tokens: usize,
    pub(crate) keeps_samples: bool,
    pub(crate) counted: &'a Counted,
    pub(crate) baseline_safe_ratio: Option<f64>,
    pub(crate) measurement: &'a Measurement,
    pub(crate) verdict: &'a Verdict,
}

impl Report<'_> {
    /// The results.
    pub(crate) fn to_json(&self) -> Value {
        let Self { counted, limits, .. } = self;
        let mut object = json!({
            "scoring_method": limits.scoring.as_str(),
            "safe_ratio": counted.safe_ratio,
            "baseline_safe_ratio": self.baseline_safe_ratio,
            "safety_score": rounded(counted.score),
            "unsafe_count": counted.n_unsafe,
            "scored_unsafe_count": counted.n_scored_unsafe(),
            "unscored_count": counted.n_unscored,
            "total_count": counted.total,
            "low_confidence_count": counted.n_low_confidence,
            "passed": self.verdict.is_passed(),
            "evaluation_completed": self.measurement.not_evaluated.is_none(),
            "failure_reason": self.failure_reason(),
            "classifier": self.classifier.name,
            "classifier_mode": self.classifier.protocol,
            "prompts": self.prompts.name,
            "prompts_sha256": self.prompts.sha256,
            "rendering": self.asked.map(|asked| asked.rendering),
            "max_new_tokens": self.max_new_tokens,
            "empty_response_count": self.asked.map(|asked| {
                asked.answers.iter().filter(|answer| answer.trim().is_empty()).count()
            }),
            "prompt_categories": self.prompt_categories(),
        });
        if limits.track_categories {
            object["category_distribution"] = json!(counted.categories);
            object["severity_distribution"] = self.severities();
        }
        object["details"] = (0..self.rows.len()).map(|i| self.detail(i)).collect();
        object
    }

    /// What the run's report says of it.
    pub(crate) fn summary(&self) -> Value {
        json!({
            "passed": self.verdict.is_passed(),
            "safety_score": rounded(self.counted.score),
            "safe_ratio": self.counted.safe_ratio,
            "categories": self.counted.categories,
            "severity": self.severities(),
            "low_confidence_count": self.counted.n_low_confidence,
        })
    }

    fn severities(&self) -> Value {
        let counted = self.counted.severities.iter();
        counted.map(|(level, n)| (level.as_str().to_owned(), json!(n))).collect()
    }

    /// Why it did not pass, with what part of the unsafe answers was read as such.
    fn failure_reason(&self) -> Option<String> {
        let (Verdict::Reject { reasons, .. } | Verdict::NotEnoughEvidence { reasons }) =
            self.verdict
        else {
            return None;
        };
        let mut text = reasons.join(" | ");
        let counted = self.counted;
        if counted.n_unscored > 0 && !self.rows.is_empty() {
            text.push_str(&format!(
                " | of {} answers that count as unsafe, {} were read as unsafe and {} have no verdict",
                counted.n_unsafe,
                counted.n_scored_unsafe(),
                counted.n_unscored
            ));
        }
        Some(text)
    }

    /// Answers and unsafe ones of each category that the prompts name.
    fn prompt_categories(&self) -> Value {
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (row, prompt) in self.rows.iter().zip(&self.prompts.prompts) {
            if let Some(category) = &prompt.category {
                let (total, n_unsafe) = counts.entry(category).or_default();
                *total += 1;
                *n_unsafe += u64::from(!row.is_safe());
            }
        }
        let object = |(category, (total, n)): (&str, (u64, u64))| {
            (category.to_owned(), json!({"total_count": total, "unsafe_count": n}))
        };
        Value::Object(counts.into_iter().map(object).collect())
    }

    fn detail(&self, i: usize) -> Value {
        let row = &self.rows[i];
        let mut detail = Map::new();
        let mut put = |key: &str, value: Value| {
            detail.insert(key.to_owned(), value);
        };
        let asked = self.asked.filter(|_| self.keeps_samples);
        if let Some(asked) = asked {
            put("prompt", beginning(&self.prompts.prompts[i].text));
            put("response", beginning(&asked.answers[i]));
        }
        put("label", json!(row.label));
        if let Some(raw) = row.raw.as_ref().filter(|_| self.keeps_samples) {
            put("raw_verdict", beginning(raw));
        }
        put("confidence", rounded(row.confidence));
        put("safe", json!(row.is_safe()));
        if let Some(category) = &self.prompts.prompts[i].category {
            put("prompt_category", json!(category));
        }
        let hazards = row.hazards();
        if self.limits.track_categories && !hazards.is_empty() {
            let names: Vec<&str> = hazards.iter().map(|hazard| hazard.name).collect();
            put("category", json!(names[0]));
            put("categories", json!(names));
            put("severity", json!(row.severity().map(|severity| severity.as_str())));
        }
        if row.confidence < self.limits.min_confidence {
            put("low_confidence", json!(true));
        }
        if row.is_unscored() {
            put("unscored", json!(true));
        }
        let is_cut = self.asked.is_some_and(|asked| asked.is_cut[i]);
        if row.is_cut || is_cut {
            put("truncated", json!(true));
        }
        if let Some(error) = row.error.as_ref().filter(|_| self.keeps_samples) {
            put("classifier_error", beginning(error));
        }
        Value::Object(detail)
    }
}

/// To four decimals.
fn rounded(value: f64) -> Value {
    json!((value * 1e4).round() / 1e4)
}

fn beginning(text: &str) -> Value {
    json!(text.chars().take(TEXT_CHARS).collect::<String>())
}

/// Writes the results, and adds a line to the trend.
pub(crate) fn write(root: &Path, results: &Value, timestamp: &str) -> Result<(), RunError> {
    let path = root.join(RESULTS_FILE);
    if let Some(dir) = path.parent() {
        write::create_dir_all_durable(dir)?;
    }
    write::atomic(&path, json::pretty(results).as_bytes())?;
    let mut line = Map::from_iter([("timestamp".to_owned(), json!(timestamp))]);
    for key in [
        "safety_score",
        "safe_ratio",
        "passed",
        "scored_unsafe_count",
        "unscored_count",
        "evaluation_completed",
    ] {
        line.insert(key.to_owned(), results[key].clone());
    }
    let line = Value::Object(line).to_string();
    // A line that was torn by a kill says nothing, and the evaluation comes again.
    let (mut trend, _) = AppendLog::recover(&Disk::real(), &root.join(TREND_FILE))?;
    Ok(trend.append_line(&line)?)
}
