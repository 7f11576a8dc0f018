//! The course of a run for its report: the lines of `metrics.jsonl`, the sizes of the data, and the
//! question that was asked before and after.
//!
//! What looks like personal data or a secret in the question and its answers is masked before it
//! reaches a document, and nothing of them does where the config says that the data has personal data.

use crate::dossier::Dossier;
use crate::event::{Sample, When};
use forgelm_artifact::jsonl;
use forgelm_evidence::documents::course::{Course, EvaluationPoint, Samples, Split, StepPoint};
use forgelm_privacy::{PII_MASK, SECRET_MASK, mask_pii, mask_secrets};
use serde_json::Value;
use std::path::Path;

/// Groups of steps of which the report has the lowest and the highest loss.
const GROUPS_MAX: u64 = 1024;

/// Everything, once the last line is written.
pub(crate) fn course(dossier: &Dossier<'_>) -> Course {
    let (steps, evaluations) = history(&dossier.plan.output.metrics(), dossier.state.global_step);
    let has_personal_data =
        dossier.plan.run.data.governance.as_ref().is_some_and(|g| g.personal_data_included);
    let [train, validation] = &dossier.data.statistics;
    let sizes = [
        ("training", dossier.data.train.len(), train),
        ("held out", dossier.data.validation.len(), validation),
    ];
    let splits = sizes
        .into_iter()
        .filter(|(_, n_records, _)| *n_records > 0)
        .map(|(name, n_records, of)| Split {
            name,
            n_records: n_records as u64,
            n_tokens: of.tokens,
            n_trained_tokens: of.trained_tokens,
            // Counted over the files, before records are held out.
            longest: (of.longest > 0).then_some(of.longest),
            n_truncated: (of.longest > 0).then_some(of.truncated),
        })
        .collect();
    Course { steps, evaluations, splits, samples: samples(dossier.samples, has_personal_data) }
}

/// The steps and evaluations of a metrics file. Of a long run no more than can be drawn: each group
/// of steps has its lowest and its highest loss, and the ends are kept. What cannot be read is not
/// there; the file itself is signed.
fn history(path: &Path, n_steps: u64) -> (Vec<StepPoint>, Vec<EvaluationPoint>) {
    let mut steps = Thinned::new(n_steps);
    let mut evaluations = Vec::new();
    if let Ok(mut lines) = jsonl::Reader::open(path) {
        while let Some(Ok(line)) = lines.next_line() {
            let Ok(object) = line.json() else { continue };
            let number = |key: &str| as_number(object.get(key)?);
            let Some(step) = object.get("step").and_then(Value::as_u64) else { continue };
            if let (Some(loss), Some(learning_rate), Some(grad_norm)) =
                (number("loss"), number("learning_rate"), number("grad_norm"))
            {
                steps.push(StepPoint { step, loss, learning_rate, grad_norm });
            } else if let Some(loss) = number("eval_loss") {
                evaluations.push(EvaluationPoint { step, loss });
            }
        }
    }
    (steps.finish(), evaluations)
}

/// A number; JSON has no other word than null for what is none.
fn as_number(value: &Value) -> Option<f64> {
    if value.is_null() { Some(f64::NAN) } else { value.as_f64() }
}

/// Steps that come in order, thinned as they come.
struct Thinned {
    per_group: u64,
    first: Option<StepPoint>,
    last: Option<StepPoint>,
    group: u64,
    extremes: Option<(StepPoint, StepPoint)>,
    kept: Vec<StepPoint>,
}

impl Thinned {
    fn new(n_steps: u64) -> Self {
        let per_group = if n_steps <= 2 * GROUPS_MAX { 1 } else { n_steps.div_ceil(GROUPS_MAX) };
        Self { per_group, first: None, last: None, group: 0, extremes: None, kept: Vec::new() }
    }

    fn push(&mut self, point: StepPoint) {
        self.first.get_or_insert(point);
        self.last = Some(point);
        let group = point.step / self.per_group;
        if group != self.group {
            self.close();
            self.group = group;
        }
        let (low, high) = self.extremes.get_or_insert((point, point));
        if point.loss < low.loss {
            *low = point;
        }
        // What is no number counts as the highest there is.
        if point.loss.is_nan() || point.loss > high.loss {
            *high = point;
        }
    }

    fn close(&mut self) {
        let Some((low, high)) = self.extremes.take() else { return };
        let (a, b) = if low.step <= high.step { (low, high) } else { (high, low) };
        self.kept.push(a);
        if b.step != a.step {
            self.kept.push(b);
        }
    }

    fn finish(mut self) -> Vec<StepPoint> {
        self.close();
        let has = |kept: &[StepPoint], step: u64| kept.iter().any(|point| point.step == step);
        if let Some(first) = self.first.filter(|first| !has(&self.kept, first.step)) {
            self.kept.insert(0, first);
        }
        if let Some(last) = self.last.filter(|last| !has(&self.kept, last.step)) {
            self.kept.push(last);
        }
        self.kept
    }
}

fn samples(taken: &[Sample], has_personal_data: bool) -> Samples {
    let Some(any) = taken.first() else { return Samples::None };
    if has_personal_data {
        return Samples::LeftOut;
    }
    let mut n_masked = 0;
    let mut masked = |text: &str| {
        // Secrets first: some of them look like addresses.
        let secrets = mask_secrets(text, SECRET_MASK);
        let all = mask_pii(&secrets.text, PII_MASK);
        n_masked += secrets.counts.values().sum::<u64>() + all.counts.values().sum::<u64>();
        all.text
    };
    let answer = |when: When| taken.iter().find(|sample| sample.when == when).map(|of| &of.answer);
    let (question, expected) = (masked(&any.question), masked(&any.expected));
    let before = answer(When::Before).map(|text| masked(text));
    let after = answer(When::After).map(|text| masked(text));
    Samples::Asked { question, expected, before, after, n_masked }
}

#[cfg(test)]
mod tests {
    use super::{Thinned, samples};
    use crate::event::{Sample, When};
    use forgelm_evidence::documents::course::{Samples, StepPoint};

    fn point(step: u64, loss: f64) -> StepPoint {
        StepPoint { step, loss, learning_rate: 0.1, grad_norm: 1.0 }
    }

    #[test]
    fn a_short_run_keeps_every_step_and_a_long_one_its_peaks_and_its_ends() {
        let mut short = Thinned::new(3);
        [point(1, 3.0), point(2, 2.0), point(3, 2.5)].into_iter().for_each(|p| short.push(p));
        assert_eq!(short.finish().len(), 3);
        let n = 1_000_000;
        let mut long = Thinned::new(n);
        for step in 1..=n {
            let loss = match step {
                123_456 => 90.0,
                654_321 => 0.001,
                700_000 => f64::NAN,
                _ => 2.0,
            };
            long.push(point(step, loss));
        }
        let kept = long.finish();
        assert!(kept.len() <= 2 * 1024 + 4, "{}", kept.len());
        assert!(kept.windows(2).all(|pair| pair[0].step < pair[1].step));
        let has = |step: u64| kept.iter().any(|point| point.step == step);
        assert!([1, 123_456, 654_321, 700_000, n].into_iter().all(has));
    }

    fn sample(when: When, answer: &str) -> Sample {
        Sample {
            when,
            question: "Who is jane.doe@example.org?".to_owned(),
            expected: "Ask AKIAIOSFODNN7EXAMPLE".to_owned(),
            answer: answer.to_owned(),
        }
    }

    #[test]
    fn what_looks_personal_or_secret_does_not_reach_the_report() {
        let taken = [sample(When::Before, "mail bob@example.com"), sample(When::After, "nobody")];
        let Samples::Asked { question, expected, before, after, n_masked } = samples(&taken, false)
        else {
            panic!("asked")
        };
        let all = format!("{question} {expected} {} {}", before.unwrap(), after.unwrap());
        for hidden in ["jane", "bob@", "AKIA"] {
            assert!(!all.contains(hidden), "{all}");
        }
        assert!(all.contains("nobody") && n_masked == 3, "{all} {n_masked}");
        assert_eq!(samples(&taken, true), Samples::LeftOut);
        assert_eq!(samples(&[], true), Samples::None);
        let Samples::Asked { before, .. } = samples(&taken[1..], false) else { panic!("asked") };
        assert_eq!(before, None, "a run that went on from a checkpoint");
    }
}
