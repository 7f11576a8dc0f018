//! The scores of tasks and of groups of them, and the one number that a gate compares.

use crate::library::Group;

/// A metric of a task or a group.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricValue {
    /// Its name.
    pub metric: &'static str,
    /// The filter's name; `none` without one.
    pub filter: String,
    /// The value.
    pub value: f64,
    /// Its standard error, where it has one.
    pub std_error: Option<f64>,
}

/// What a task came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskScores {
    /// The task.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// Version of its definition.
    pub version: Option<String>,
    /// Rows that were asked.
    pub n_samples: usize,
    /// Rows that there are.
    pub n_rows: usize,
    /// Examples in each prompt.
    pub num_fewshot: usize,
    /// In the order of the definition.
    pub metrics: Vec<MetricValue>,
}

/// What a group came to.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupScores {
    /// The group.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// Rows of all its tasks.
    pub n_samples: usize,
    /// Means over its tasks.
    pub metrics: Vec<MetricValue>,
}

/// The number of a task or a group that a gate compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Which metric it is.
    pub metric: &'static str,
    /// Under which filter.
    pub filter: String,
    /// Between 0 and 1.
    pub value: f64,
    /// Its standard error.
    pub std_error: Option<f64>,
    /// Rows behind it.
    pub n_samples: usize,
}

/// Which metric is the score: the first of these that there is.
const SCORES: [&str; 4] = ["acc_norm", "acc", "exact_match", "acc_bytes"];

/// Whether a metric can be the score.
pub(crate) fn is_score(metric: &str) -> bool {
    SCORES.contains(&metric)
}

fn score_of(metrics: &[MetricValue], n_samples: usize) -> Option<Score> {
    let found = SCORES.iter().find_map(|name| metrics.iter().find(|m| m.metric == *name))?;
    Some(Score {
        metric: found.metric,
        filter: found.filter.clone(),
        value: found.value,
        std_error: found.std_error,
        n_samples,
    })
}

impl TaskScores {
    /// The score; none where no metric of the task is a share of right answers.
    #[must_use]
    pub fn score(&self) -> Option<Score> {
        score_of(&self.metrics, self.n_samples)
    }
}

impl GroupScores {
    /// Means over the tasks of a group.
    #[must_use]
    pub fn of(group: &Group, tasks: &[&TaskScores]) -> Self {
        let mut metrics = Vec::new();
        for aggregate in &group.aggregates {
            let mut filters: Vec<&str> = Vec::new();
            let all = tasks.iter().flat_map(|task| &task.metrics);
            for metric in all.filter(|metric| metric.metric == aggregate.metric) {
                let is_asked =
                    aggregate.filters.as_ref().is_none_or(|asked| asked.contains(&metric.filter));
                if is_asked && !filters.contains(&metric.filter.as_str()) {
                    filters.push(&metric.filter);
                }
            }
            for filter in filters {
                let of_task = |task: &&TaskScores| {
                    let is_it =
                        |m: &&MetricValue| m.metric == aggregate.metric && m.filter == filter;
                    let found = task.metrics.iter().find(is_it)?;
                    Some((found.clone(), task.n_samples))
                };
                let found: Vec<_> = tasks.iter().filter_map(of_task).collect();
                metrics.extend(mean(&found, aggregate.weight_by_size));
            }
        }
        Self {
            name: group.name.clone(),
            alias: group.alias.clone(),
            n_samples: tasks.iter().map(|task| task.n_samples).sum(),
            metrics,
        }
    }

    /// The score; none where no metric of the group is a share of right answers.
    #[must_use]
    pub fn score(&self) -> Option<Score> {
        score_of(&self.metrics, self.n_samples)
    }
}

/// The mean of one metric over tasks of so many rows. With weights its error is that of the pooled
/// rows, else that of a mean of independent means.
fn mean(found: &[(MetricValue, usize)], weight_by_size: bool) -> Option<MetricValue> {
    let (first, _) = found.first()?;
    let weight = |n: usize| if weight_by_size { n as f64 } else { 1.0 };
    let total: f64 = found.iter().map(|(_, n)| weight(*n)).sum();
    let sum: f64 = found.iter().map(|(metric, n)| metric.value * weight(*n)).sum();
    let errors: Option<Vec<(f64, f64)>> =
        found.iter().map(|(metric, n)| metric.std_error.map(|error| (error, *n as f64))).collect();
    let pooled = |errors: Vec<(f64, f64)>| {
        let squares: f64 = errors.iter().map(|(error, n)| (n - 1.0) * error.powi(2) * n).sum();
        let n: f64 = errors.iter().map(|(_, n)| n).sum();
        (squares / (n - errors.len() as f64) / n).sqrt()
    };
    Some(MetricValue {
        metric: first.metric,
        filter: first.filter.clone(),
        value: sum / total,
        std_error: errors.map(|errors| match weight_by_size {
            true => pooled(errors),
            false => independent(errors.iter().map(|(error, _)| *error)),
        }),
    })
}

/// The error of the mean of independent values with these errors.
fn independent(errors: impl Iterator<Item = f64>) -> f64 {
    let (n, squares) = errors.fold((0.0, 0.0), |(n, sum), error| (n + 1.0, sum + error * error));
    squares.sqrt() / n
}

/// The plain mean of scores, whatever their sizes: value, standard error, rows. None without a score.
#[must_use]
pub fn average(scores: &[Score]) -> Option<(f64, Option<f64>, usize)> {
    if scores.is_empty() {
        return None;
    }
    let value = scores.iter().map(|score| score.value).sum::<f64>() / scores.len() as f64;
    let errors: Option<Vec<f64>> = scores.iter().map(|score| score.std_error).collect();
    let n_samples = scores.iter().map(|score| score.n_samples).sum();
    Some((value, errors.map(|errors| independent(errors.into_iter())), n_samples))
}

#[cfg(test)]
mod tests {
    use super::{GroupScores, MetricValue, TaskScores, average, score_of};
    use crate::library::{Aggregate, Group};

    fn metric(metric: &'static str, filter: &str, value: f64, error: Option<f64>) -> MetricValue {
        MetricValue { metric, filter: filter.to_owned(), value, std_error: error }
    }

    fn task(n_samples: usize, metrics: Vec<MetricValue>) -> TaskScores {
        TaskScores {
            name: "t".to_owned(),
            alias: None,
            version: None,
            n_samples,
            n_rows: n_samples,
            num_fewshot: 0,
            metrics,
        }
    }

    #[test]
    fn the_score_is_the_first_metric_of_the_table() {
        let all = [
            metric("perplexity", "none", 9.0, None),
            metric("exact_match", "strict", 0.1, None),
            metric("acc", "none", 0.2, None),
            metric("acc_norm", "none", 0.3, Some(0.01)),
        ];
        assert_eq!(score_of(&all, 5).unwrap().metric, "acc_norm");
        assert_eq!(score_of(&all[..3], 5).unwrap().metric, "acc");
        assert_eq!(score_of(&all[..2], 5).unwrap().filter, "strict");
        assert_eq!(score_of(&all[..1], 5), None);
    }

    /// By `pooled_sample_stderr` and `unweighted_mean_stderr` of `lm_eval.api.metrics` 0.4.13.
    #[test]
    fn a_group_is_the_mean_of_its_tasks() {
        let (a, b) = (
            task(10, vec![metric("acc", "none", 0.5, Some(0.1))]),
            task(30, vec![metric("acc", "none", 0.7, Some(0.05))]),
        );
        let of = |weight_by_size| {
            let aggregate = Aggregate { metric: "acc".to_owned(), filters: None, weight_by_size };
            let group = Group {
                name: "g".to_owned(),
                alias: None,
                members: Vec::new(),
                aggregates: vec![aggregate],
            };
            GroupScores::of(&group, &[&a, &b]).score().unwrap()
        };
        let weighted = of(true);
        assert!((weighted.value - 0.65).abs() < 1e-12);
        // sqrt((9 * 0.01 * 10 + 29 * 0.0025 * 30) / (40 - 2) / 40)
        assert!((weighted.std_error.unwrap() - 0.044_978_064_8).abs() < 1e-9, "{weighted:?}");
        assert_eq!(weighted.n_samples, 40);
        let plain = of(false);
        assert!((plain.value - 0.6).abs() < 1e-12);
        assert!((plain.std_error.unwrap() - 0.055_901_699_4).abs() < 1e-9, "{plain:?}");
        let (mean, error, n) = average(&[weighted.clone(), plain]).unwrap();
        assert!((mean - 0.625).abs() < 1e-12);
        assert!((error.unwrap() - 0.035_874_9).abs() < 1e-6, "{error:?}");
        assert_eq!(n, 80);
        assert_eq!(average(&[]), None);
    }
}
