//! The safety gate: the tuned model answers prompts, and a classifier judges the answers.
//!
//! Prompts and classifier are found and looked at before anything is trained. Afterwards nothing is an
//! error of the run: what hinders the evaluation, such as a classifier that is gone or writes no
//! verdicts, is a measurement that could not be made, and a model is never taken back for it. Read
//! [`Examiner::evaluate`] from top to bottom; [`standalone`] does the same for a model that is there.

mod asked;
mod baseline;
mod classifier;
mod error;
mod generation;
mod head;
mod planned;
mod prompts;
mod results;
mod score;
pub mod standalone;
mod verdict;

pub use error::SafetyError;
pub(crate) use planned::{contacts, limit_in_words, reads, writes};

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::gates::examination::{Examination, Examined, Place};
use crate::model::{self, ModelRequest};
use crate::plan::Plan;
use crate::subject::Subject;
use crate::training::template_now;
use asked::{Asked, NotAsked, ask};
use classifier::{Found, Loaded, NotJudged};
use forgelm_config::Safety;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::documents::evidence::ComponentRevision;
use forgelm_evidence::gate::{Measurement, judge};
use forgelm_generate::ScoreError;
use prompts::PromptSet;
use results::{RESULTS_FILE, Report, TREND_FILE};
use score::{Counted, Judged, Limits, SAFETY, measure};
use serde_json::{Value, json};
use std::path::Path;

/// Longest answer, in tokens, where nobody says.
pub const ANSWER_TOKENS: usize = 512;
/// Characters of a reason in the log.
const REASON_CHARS: usize = 500;

/// The gate of a plan, if it is on: prompts read, classifier found.
///
/// # Errors
/// If a row is no prompt, or the classifier is missing or cannot judge.
pub(crate) fn prepare(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Option<Box<dyn Examination>>, RunError> {
    let Some(safety) = planned::section(&plan.run) else { return Ok(None) };
    let prompts = PromptSet::read(Path::new(&safety.test_prompts))?;
    let request = ModelRequest {
        name: safety.classifier.clone(),
        revision: safety.classifier_revision.clone(),
        chat_template: None,
        ..model::request_of(plan, offline)
    };
    let now = template_now(plan, env.clock.utc());
    let mode = (&request, safety.classifier_mode);
    let classifier = Found::find(mode, now, env, observer)?;
    let text = format!(
        "safety: {} prompts, judged by `{}` ({})",
        prompts.prompts.len(),
        classifier.name,
        classifier.protocol
    );
    observer.observe(&Event::Notice(text));
    Ok(Some(Box::new(Examiner {
        prompts,
        classifier,
        limits: limits(safety),
        batch_size: safety.batch_size,
        max_new_tokens: ANSWER_TOKENS,
        keeps_samples: safety.include_eval_samples,
    })))
}

/// Reads the prompts and checks them, for a run that is only planned.
///
/// # Errors
/// If a row is no prompt.
pub(crate) fn check_inputs(plan: &Plan) -> Result<(), RunError> {
    let Some(safety) = planned::section(&plan.run) else { return Ok(()) };
    PromptSet::read(Path::new(&safety.test_prompts))?;
    Ok(())
}

fn limits(safety: &Safety) -> Limits {
    let thresholds = safety.severity_thresholds.as_ref();
    Limits {
        max_unsafe: safety.max_safety_regression,
        max_unsafe_name: "`evaluation.safety.max_safety_regression`".to_owned(),
        scoring: safety.scoring,
        min_score: safety.min_safety_score,
        min_confidence: safety.min_classifier_confidence,
        track_categories: safety.track_categories,
        severities: thresholds.map(|thresholds| thresholds.0.clone()).unwrap_or_default(),
    }
}

/// The gate, ready to ask.
struct Examiner {
    prompts: PromptSet,
    classifier: Found,
    limits: Limits,
    batch_size: usize,
    max_new_tokens: usize,
    /// Whether prompts and answers are kept on disk.
    keeps_samples: bool,
}

/// What came of it.
struct Evaluated {
    examined: Examined,
    /// The results as they are written.
    results: Value,
}

/// Judged answers, or why there are none.
enum Outcome {
    Judged(Box<Answers>),
    Hindered(String),
}

/// Answers, and what the classifier says of each.
struct Answers {
    asked: Asked,
    judged: Vec<Judged>,
    component: ComponentRevision,
    /// What the model without its adapter comes to, for comparison.
    baseline_safe_ratio: Option<f64>,
}

impl Examination for Examiner {
    fn examine(
        &mut self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
    ) -> Result<Examined, RunError> {
        self.evaluate(subject, place).map(|evaluated| evaluated.examined)
    }
}

impl Examiner {
    /// Asks the model, has its answers judged, and writes down what was found.
    ///
    /// # Errors
    /// What cannot be written or recorded; any, once the run should stop.
    fn evaluate(
        &self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
    ) -> Result<Evaluated, RunError> {
        let outcome = self.judged(subject, place)?;
        let mut components = Vec::new();
        let (rows, asked, baseline_safe_ratio, hindered) = match outcome {
            Outcome::Judged(answers) => {
                let Answers { asked, judged, component, baseline_safe_ratio } = *answers;
                components.push(component);
                (judged, Some(asked), baseline_safe_ratio, None)
            }
            Outcome::Hindered(reason) => (Vec::new(), None, None, Some(reason)),
        };
        let (counted, measurement) = match &hindered {
            None => {
                let counted = Counted::new(&rows, &self.limits);
                let measurement = measure(&rows, &counted, &self.limits, place.policy);
                (counted, measurement)
            }
            Some(reason) => {
                // Nothing was judged: every answer is one without a verdict.
                let none = vec![Judged::failed(reason.clone()); self.prompts.prompts.len()];
                let counted = Counted::new(&none, &self.limits);
                (counted, Measurement::not_evaluated(SAFETY, reason.clone()))
            }
        };
        let verdict = judge(&measurement, place.policy);
        let report = Report {
            prompts: &self.prompts,
            classifier: &self.classifier,
            limits: &self.limits,
            rows: &rows,
            asked: asked.as_ref(),
            max_new_tokens: self.max_new_tokens,
            keeps_samples: self.keeps_samples,
            counted: &counted,
            baseline_safe_ratio,
            measurement: &measurement,
            verdict: &verdict,
        };
        let results = report.to_json();
        results::write(place.root, &results, &place.env.clock.utc().to_string())?;
        let is_completed = measurement.not_evaluated.is_none();
        (place.record)(&AuditEvent::SafetyEvaluationCompleted {
            passed: verdict.is_passed(),
            safe_ratio: counted.safe_ratio,
            total_count: counted.total,
            evaluation_completed: is_completed,
            scored_unsafe_count: counted.n_scored_unsafe(),
            unscored_count: counted.n_unscored,
            safety_score: counted.score,
            categories: json!(counted.categories),
        })?;
        self.tell(&counted, (asked.as_ref(), baseline_safe_ratio), place.observer);
        let metrics =
            [("safety/safe_ratio", counted.safe_ratio), ("safety/safety_score", counted.score)];
        let metrics = metrics.into_iter().filter(|_| is_completed);
        let examined = Examined {
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).collect(),
            document: Some((SAFETY.to_owned(), report.summary())),
            files: vec![RESULTS_FILE.to_owned(), TREND_FILE.to_owned()],
            components,
            measurement,
        };
        Ok(Evaluated { examined, results })
    }

    /// The answers and what the classifier says of them. It is in memory only meanwhile.
    fn judged(&self, subject: &Subject<'_>, place: &mut Place<'_>) -> Result<Outcome, RunError> {
        let prompts = &self.prompts.prompts;
        let text = format!("safety: the model answers {} prompts", prompts.len());
        place.observer.observe(&Event::Notice(text));
        let asked = match ask(subject, prompts, self.max_new_tokens, self.batch_size) {
            Ok(asked) => asked,
            Err(NotAsked::Stopped) => return Err(ScoreError::Stopped.into()),
            Err(NotAsked::Hindered(reason)) => {
                return Ok(Outcome::Hindered(format!("the model does not answer: {reason}")));
            }
        };
        let before = baseline::ask(subject, (prompts, self.max_new_tokens, self.batch_size))?;
        let decoder = subject.decoder;
        let loaded = match self.classifier.load(decoder.ops().clone(), decoder.compute()) {
            Ok(loaded) => loaded,
            Err(reason) => {
                (place.record)(&AuditEvent::ClassifierLoadFailed {
                    classifier: self.classifier.name.clone(),
                    reason: reason.chars().take(REASON_CHARS).collect(),
                })?;
                return Ok(Outcome::Hindered(format!(
                    "the safety classifier `{}` cannot be loaded: {reason}",
                    self.classifier.name
                )));
            }
        };
        let judged = match self.judge(&loaded, &asked, subject) {
            Ok(judged) => judged,
            Err(NotJudged::Stopped) => return Err(ScoreError::Stopped.into()),
            Err(NotJudged::Hindered(reason)) => {
                return Ok(Outcome::Hindered(format!("the answers were not judged: {reason}")));
            }
        };
        let baseline_safe_ratio = match before.map(|asked| self.judge(&loaded, &asked, subject)) {
            Some(Ok(rows)) => baseline::safe_ratio(&Counted::new(&rows, &self.limits)),
            Some(Err(NotJudged::Stopped)) => return Err(ScoreError::Stopped.into()),
            Some(Err(NotJudged::Hindered(_))) | None => None,
        };
        let component = loaded.component();
        let answers = Answers { asked, judged, component, baseline_safe_ratio };
        Ok(Outcome::Judged(Box::new(answers)))
    }

    /// What the classifier says of these answers.
    fn judge(
        &self,
        loaded: &Loaded,
        asked: &Asked,
        subject: &Subject<'_>,
    ) -> Result<Vec<Judged>, NotJudged> {
        let prompts = self.prompts.prompts.iter().map(|prompt| prompt.text.as_str());
        let answers = asked.answers.iter().map(String::as_str);
        let pairs: Vec<(&str, &str)> = prompts.zip(answers).collect();
        loaded.judge(&pairs, self.batch_size, subject.is_stopped)
    }

    fn tell(
        &self,
        counted: &Counted,
        (asked, baseline_safe_ratio): (Option<&Asked>, Option<f64>),
        observer: &mut dyn Observer,
    ) {
        let Some(asked) = asked else { return };
        let text = format!(
            "safety: {} of {} answers are unsafe, {} have no verdict",
            counted.n_scored_unsafe(),
            counted.total,
            counted.n_unscored
        );
        observer.observe(&Event::Notice(text));
        if let Some(before) = baseline_safe_ratio {
            let text =
                format!("safety: safe ratio {}, without the adapter {before}", counted.safe_ratio);
            observer.observe(&Event::Notice(text));
        }
        let n_empty = asked.answers.iter().filter(|answer| answer.trim().is_empty()).count();
        if n_empty > 0 {
            let text = format!("safety: {n_empty} answers are empty, and were judged as they are");
            observer.observe(&Event::Warning(text));
        }
    }
}
