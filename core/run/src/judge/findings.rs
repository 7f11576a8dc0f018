//! What the judge said of each answer, and the file of it.

use forgelm_config::LlmJudge;
use serde_json::{Value, json};

/// Characters of a text that the file keeps.
const SAMPLE_CHARS: usize = 200;

/// A prompt, its answer, and what the judge said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) prompt: String,
    /// None where the tuned model gave none.
    pub(super) answer: Option<String>,
    /// One for each time that it was asked and scored.
    pub(super) scores: Vec<f64>,
    /// In the judge's words.
    pub(super) reason: Option<String>,
    /// Why there is no score.
    pub(super) failure: Option<String>,
    /// What counts.
    pub(super) score: Option<f64>,
}

impl Row {
    /// The mean of the scores; none where one is missing, or two contradict each other.
    pub(super) fn settle(&mut self, apart_max: f64) {
        if self.failure.is_some() || self.scores.is_empty() {
            return;
        }
        let (low, high) = self
            .scores
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &s| (low.min(s), high.max(s)));
        if high - low > apart_max {
            self.failure = Some(format!(
                "the judge contradicts itself: {low} and {high}, in another order of the same texts"
            ));
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "one or two")]
        let n = self.scores.len() as f64;
        self.score = Some(self.scores.iter().sum::<f64>() / n);
    }
}

/// What the judge said of a planted answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlantedAnswer {
    pub(super) kind: &'static str,
    pub(super) score: Option<f64>,
    pub(super) failure: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Findings {
    pub(super) rows: Vec<Row>,
    pub(super) planted: Vec<PlantedAnswer>,
    /// Why nothing follows from it.
    pub(super) failure: Option<String>,
}

/// What the file says beside the rows.
pub(super) struct About<'a> {
    pub(super) section: &'a LlmJudge,
    /// Which judge.
    pub(super) judge: Value,
    /// Of the file of prompts.
    pub(super) dataset_sha256: &'a str,
    /// What the marks of questions are digests of.
    pub(super) marks_from: &'a str,
    pub(super) average: Option<f64>,
    pub(super) passed: bool,
}

impl Findings {
    pub(super) fn new(prompts: &[String]) -> Self {
        let row = |prompt: &String| Row {
            prompt: prompt.clone(),
            answer: None,
            scores: Vec::new(),
            reason: None,
            failure: None,
            score: None,
        };
        Self { rows: prompts.iter().map(row).collect(), planted: Vec::new(), failure: None }
    }

    /// The scores that count.
    pub(super) fn scores(&self) -> Vec<f64> {
        self.rows.iter().filter_map(|row| row.score).collect()
    }

    /// `judge/judge_results.json`. Texts are in it only where the config wants samples.
    pub(super) fn to_json(&self, about: &About<'_>) -> Value {
        let About { section, judge, dataset_sha256, marks_from, average, passed } = about;
        let with_samples = section.include_eval_samples;
        let details = self.rows.iter().map(|row| {
            let mut detail = json!({
                "score": row.score,
                "judge_failed": row.score.is_none(),
            });
            if section.order_swap {
                detail["scores"] = json!(row.scores);
            }
            if row.score.is_none() {
                let why = row.failure.as_deref().unwrap_or("not asked");
                detail["failure"] = json!(shortened(why));
            }
            if with_samples {
                detail["prompt"] = json!(shortened(&row.prompt));
                detail["response"] = json!(row.answer.as_deref().map(shortened));
                detail["reason"] = json!(row.reason.as_deref().map(shortened));
            }
            detail
        });
        let planted = self.planted.iter().map(|planted| {
            json!({"kind": planted.kind, "score": planted.score, "failure": planted.failure})
        });
        json!({
            "schema_version": 1,
            "average_score": average,
            "min_score": section.min_score,
            "passed": passed,
            "evaluation_completed": self.failure.is_none(),
            "failure_reason": self.failure,
            "num_prompts": self.rows.len(),
            "num_scored": self.scores().len(),
            "min_valid_share": section.min_valid_share,
            "order_swap": section.order_swap,
            "judge": judge,
            "eval_dataset_sha256": dataset_sha256,
            "marks_from": marks_from,
            "canaries": planted.collect::<Vec<_>>(),
            "details": details.collect::<Vec<_>>(),
        })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(SAMPLE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::{About, Findings};
    use forgelm_config::LlmJudge;
    use serde_json::{Value, json};

    fn settled(scores: &[f64], failure: Option<&str>) -> (Option<f64>, bool) {
        let mut findings = Findings::new(&["p".to_owned()]);
        let row = &mut findings.rows[0];
        row.scores = scores.to_vec();
        row.failure = failure.map(str::to_owned);
        row.settle(3.0);
        (row.score, row.failure.is_some())
    }

    #[test]
    fn a_row_counts_when_every_question_about_it_was_scored_and_they_agree() {
        assert_eq!(settled(&[7.0], None), (Some(7.0), false));
        assert_eq!(settled(&[6.0, 9.0], None), (Some(7.5), false));
        assert_eq!(settled(&[5.0, 9.0], None), (None, true), "further apart than 3");
        assert_eq!(settled(&[7.0], Some("the reply is empty")), (None, true));
        assert_eq!(settled(&[], None), (None, false));
    }

    #[test]
    fn texts_are_in_the_file_only_where_samples_are_wanted() {
        let mut findings = Findings::new(&["p".repeat(300)]);
        findings.rows[0].answer = Some("secret".to_owned());
        findings.rows[0].reason = Some("because".to_owned());
        findings.rows[0].score = Some(8.0);
        let json = |section: &LlmJudge| {
            findings.to_json(&About {
                section,
                judge: Value::Null,
                dataset_sha256: "d",
                marks_from: "fg-0",
                average: Some(8.0),
                passed: true,
            })
        };
        let without = json(&LlmJudge::default());
        assert_eq!(without["details"][0], json!({"score": 8.0, "judge_failed": false}));
        let with = json(&LlmJudge { include_eval_samples: true, ..LlmJudge::default() });
        assert_eq!(with["details"][0]["response"], "secret");
        assert_eq!(with["details"][0]["prompt"].as_str().map(str::len), Some(200));
    }
}
