//! What a model came to on its benchmarks: for the gate, for programs, for people.

use super::GATE;
use super::suite::Origin;
use crate::gates::interval;
use forgelm_benchmark::{GroupScores, MetricValue, Score, TaskScores, average};
use forgelm_config::Benchmark;
use forgelm_evidence::gate::{Bound, Check, Measurement, Policy};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A name that the config asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) n_samples: usize,
    /// None where it has no share of right answers.
    pub(super) score: Option<Score>,
    /// Of a group; those of a task stand with the tasks.
    group: Option<Map<String, Value>>,
    metrics: Vec<MetricValue>,
}

/// A task that was asked, alone or in groups.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    name: String,
    document: Value,
}

/// What a model came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    /// As the config has them.
    pub(super) names: Vec<String>,
    pub(super) named: Vec<Named>,
    pub(super) tasks: Vec<Scored>,
}

impl Named {
    pub(super) fn of_task(scores: &TaskScores) -> Self {
        Self {
            name: scores.name.clone(),
            alias: scores.alias.clone(),
            n_samples: scores.n_samples,
            score: scores.score(),
            group: None,
            metrics: scores.metrics.clone(),
        }
    }

    pub(super) fn of_group(scores: &GroupScores) -> Self {
        Self {
            name: scores.name.clone(),
            alias: scores.alias.clone(),
            n_samples: scores.n_samples,
            score: scores.score(),
            group: Some(metrics(&scores.metrics)),
            metrics: scores.metrics.clone(),
        }
    }
}

impl Scored {
    pub(super) fn of(scores: &TaskScores) -> Self {
        let document = json!({
            "version": scores.version,
            "n_samples": scores.n_samples,
            "n_rows": scores.n_rows,
            "num_fewshot": scores.num_fewshot,
            "metrics": metrics(&scores.metrics),
        });
        Self { name: scores.name.clone(), document }
    }
}

/// `acc,none` and `acc_stderr,none`, as the harness names them; what is no number is null.
fn metrics(found: &[MetricValue]) -> Map<String, Value> {
    let of = |MetricValue { metric, filter, value, std_error }: &MetricValue| {
        [
            (format!("{metric},{filter}"), json!(value)),
            (format!("{metric}_stderr,{filter}"), json!(std_error)),
        ]
    };
    found.iter().flat_map(of).collect()
}

impl Report {
    /// The scores by name.
    pub(super) fn scores(&self) -> BTreeMap<String, f64> {
        let of = |named: &Named| Some((named.name.clone(), named.score.as_ref()?.value));
        self.named.iter().filter_map(of).collect()
    }

    fn found(&self) -> Vec<Score> {
        self.named.iter().filter_map(|named| named.score.clone()).collect()
    }

    /// The plain mean of the scores; none where there is no score.
    pub(super) fn average(&self) -> Option<f64> {
        average(&self.found()).map(|(value, ..)| value)
    }

    /// What the gate judges: the mean beside the lowest that is accepted.
    pub(super) fn measurement(&self, min_score: Option<f64>, policy: Policy) -> Measurement {
        let check = |limit: f64, (value, std_error, n): (f64, Option<f64>, usize)| Check {
            measure: "benchmark/average".to_owned(),
            value,
            bound: Bound::AtLeast,
            limit,
            limit_name: "`evaluation.benchmark.min_score`".to_owned(),
            n_samples: Some(n as u64),
            interval: interval_of(value, std_error, n as u64, policy.level()),
        };
        let checks = min_score.zip(average(&self.found())).map(|(limit, of)| check(limit, of));
        Measurement {
            gate: GATE.to_owned(),
            checks: checks.into_iter().collect(),
            not_evaluated: None,
        }
    }

    /// `benchmark_results.json`.
    pub(super) fn document(
        &self,
        section: &Benchmark,
        origins: &[Origin],
        has_passed: bool,
    ) -> Value {
        let of_all = average(&self.found());
        let scored = |named: &Named| {
            let score = named.score.as_ref()?;
            let of = json!({
                "metric": format!("{},{}", score.metric, score.filter),
                "value": score.value,
                "std_error": score.std_error,
                "n_samples": score.n_samples,
            });
            Some((named.name.clone(), of))
        };
        let group = |named: &Named| {
            let metrics = named.group.clone()?;
            Some((named.name.clone(), json!({"n_samples": named.n_samples, "metrics": metrics})))
        };
        let data: Vec<Value> = origins.iter().map(origin).collect();
        json!({
            "schema_version": 1,
            "tasks": self.names,
            "scores": self.scores(),
            "average_score": of_all.map(|(value, ..)| value),
            "average_std_error": of_all.and_then(|(_, error, _)| error),
            "passed": has_passed,
            "num_fewshot": section.num_fewshot,
            "limit": section.limit,
            "min_score": section.min_score,
            "score_metrics": self.named.iter().filter_map(scored).collect::<Map<_, _>>(),
            "results": self.tasks.iter().map(|task| (task.name.clone(), task.document.clone()))
                .collect::<Map<_, _>>(),
            "groups": self.named.iter().filter_map(group).collect::<Map<_, _>>(),
            "data": data,
        })
    }

    /// A table for people.
    pub(super) fn to_text(&self) -> String {
        let mut lines = String::new();
        let width = self.named.iter().map(|named| named.name.len()).max().unwrap_or(0).max(7);
        for named in &self.named {
            let metrics = named.metrics.iter().map(|metric| {
                let error = metric.std_error.map(|error| format!(" ± {error:.4}"));
                let filter = match metric.filter.as_str() {
                    "none" => String::new(),
                    filter => format!(" ({filter})"),
                };
                format!(
                    "{}{filter} {:.4}{}",
                    metric.metric,
                    metric.value,
                    error.unwrap_or_default()
                )
            });
            let alias = named.alias.as_deref().map(|alias| format!(" ({alias})"));
            let (name, n) = (&named.name, named.n_samples);
            let metrics: Vec<String> = metrics.collect();
            let (alias, metrics) = (alias.unwrap_or_default(), metrics.join(", "));
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{name:<width$}  {metrics}; {n} rows{alias}");
        }
        if let Some((value, error, n)) = average(&self.found()) {
            let error = error.map(|error| format!(" ± {error:.4}")).unwrap_or_default();
            let _ = writeln!(lines, "{:<width$}  {value:.4}{error}; {n} rows", "average");
        }
        lines
    }
}

fn origin(origin: &Origin) -> Value {
    let files = origin.files.iter().map(|file| {
        json!({
            "path": file.path,
            "sha256": file.sha256.to_string(),
            "bytes": file.n_bytes,
            "rows": file.n_rows,
        })
    });
    json!({
        "task": origin.task,
        "dataset": origin.data_set,
        "revision": origin.revision,
        "files": files.collect::<Vec<_>>(),
    })
}

/// Student's bounds from the standard error. Where all rows are right or all are wrong that error is 0
/// and says nothing; a share has bounds even then.
fn interval_of(
    value: f64,
    std_error: Option<f64>,
    n_samples: u64,
    confidence: f64,
) -> Option<[f64; 2]> {
    let std_error = std_error?;
    if std_error > 0.0 {
        let [low, high] = interval::mean(value, std_error, n_samples, confidence)?;
        return Some([low.max(0.0), high.min(1.0)]);
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let n_right = (value * n_samples as f64).round() as u64;
    interval::share(n_right, n_samples, confidence)
}

#[cfg(test)]
mod tests {
    use super::{Named, Report, interval_of};
    use forgelm_benchmark::{MetricValue, TaskScores};
    use forgelm_evidence::gate::{Policy, Source, Verdict, judge};

    fn scores(name: &str, metric: &'static str, value: f64, n_samples: usize) -> TaskScores {
        let filter = "none".to_owned();
        TaskScores {
            name: name.to_owned(),
            alias: None,
            version: None,
            n_samples,
            n_rows: n_samples,
            num_fewshot: 0,
            metrics: vec![MetricValue { metric, filter, value, std_error: Some(0.03) }],
        }
    }

    fn report(tasks: &[TaskScores]) -> Report {
        let named = tasks.iter().map(Named::of_task).collect();
        Report { names: Vec::new(), named, tasks: Vec::new() }
    }

    #[test]
    fn the_average_is_judged_and_a_task_without_a_score_is_left_out() {
        let report = report(&[
            scores("a", "acc_norm", 0.25, 40),
            scores("b", "exact_match", 0.75, 60),
            scores("c", "word_perplexity", 31.0, 10),
        ]);
        assert_eq!(report.average(), Some(0.5));
        assert_eq!(report.scores().into_iter().collect::<Vec<_>>().len(), 2);
        let plain = Policy::default();
        let at = |limit| judge(&report.measurement(Some(limit), plain), plain);
        assert_eq!(at(0.5), Verdict::Accept, "equal passes");
        let Verdict::Reject { source: Source::Threshold, reasons } = at(0.51) else {
            panic!("0.5 is below 0.51")
        };
        let reason = "benchmark/average 0.5 is below `evaluation.benchmark.min_score` 0.51";
        assert_eq!(reasons, [reason]);
        let check = &report.measurement(Some(0.5), plain).checks[0];
        assert_eq!(check.n_samples, Some(100));
        // sqrt(0.03^2 + 0.03^2) / 2 = 0.0212132; t(0.975, 99) = 1.984217
        let [low, high] = check.interval.unwrap();
        assert!((low - 0.457_908).abs() < 1e-5 && (high - 0.542_092).abs() < 1e-5, "{low} {high}");
        assert_eq!(judge(&report.measurement(None, plain), plain), Verdict::Accept);
    }

    #[test]
    fn an_interval_across_the_limit_is_not_enough_evidence() {
        let report = report(&[scores("a", "acc", 0.5, 100)]);
        let sure = Policy { min_samples: None, confidence: Some(0.95) };
        let at = |limit| judge(&report.measurement(Some(limit), sure), sure);
        assert!(matches!(at(0.52), Verdict::NotEnoughEvidence { .. }));
        assert_eq!(at(0.4), Verdict::Accept);
        assert!(matches!(at(0.6), Verdict::Reject { .. }));
    }

    #[test]
    fn rows_that_are_all_right_leave_a_doubt() {
        let [low, high] = interval_of(1.0, Some(0.0), 10, 0.95).unwrap();
        assert!((low - 0.722_467).abs() < 1e-5 && high > 0.999_999, "{low} {high}");
        assert_eq!(interval_of(0.5, None, 10, 0.95), None);
    }
}
