//! What answers are worth: the metrics of the harness, one value a row, and their means with
//! standard errors.

use crate::definition::{OutputType, Task};
use crate::error::TaskError;
use crate::prepared::Answer;
use crate::preprocess::Processing;
use crate::python_random::PythonRandom;
use crate::scores::{MetricValue, TaskScores};
use crate::source::{Entries, kind};
use fancy_regex::Regex;
use serde_yaml::Value;

/// Samples of a bootstrap, and how many come from one seed.
const BOOTSTRAP: (u32, u32) = (100, 1000);

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Acc,
    AccNorm,
    AccBytes,
    ExactMatch,
    Perplexity,
    WordPerplexity,
    BytePerplexity,
    BitsPerByte,
}

/// How the values of rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregation {
    Mean,
    Perplexity,
    WeightedPerplexity,
    BitsPerByte,
}

/// A metric with its options.
#[derive(Clone, Debug)]
pub(crate) struct MetricSpec {
    pub(crate) kind: MetricKind,
    comparison: Comparison,
}

/// What does not count in comparing two texts.
#[derive(Clone, Debug, Default)]
struct Comparison {
    ignore_case: bool,
    ignore_punctuation: bool,
    ignore_numbers: bool,
    regexes: Vec<Regex>,
}

/// The right choices, and how long all of them are.
#[derive(Clone, Debug)]
pub(crate) struct Gold {
    pub(crate) right: Vec<usize>,
    pub(crate) n_chars: Vec<usize>,
    pub(crate) n_bytes: Vec<usize>,
}

/// What the answers to a row are compared with.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Choice(Gold),
    Processed(Processing, Vec<bool>),
    Likelihood,
    Whole { n_words: usize, n_bytes: usize },
    Answer(Vec<String>),
}

impl MetricKind {
    const ALL: [(&'static str, Self); 8] = [
        ("acc", Self::Acc),
        ("acc_norm", Self::AccNorm),
        ("acc_bytes", Self::AccBytes),
        ("exact_match", Self::ExactMatch),
        ("perplexity", Self::Perplexity),
        ("word_perplexity", Self::WordPerplexity),
        ("byte_perplexity", Self::BytePerplexity),
        ("bits_per_byte", Self::BitsPerByte),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    fn aggregation(self) -> (&'static str, Aggregation) {
        match self {
            Self::Acc | Self::AccNorm | Self::AccBytes | Self::ExactMatch => {
                ("mean", Aggregation::Mean)
            }
            Self::Perplexity => ("perplexity", Aggregation::Perplexity),
            Self::WordPerplexity | Self::BytePerplexity => {
                ("weighted_perplexity", Aggregation::WeightedPerplexity)
            }
            Self::BitsPerByte => ("bits_per_byte", Aggregation::BitsPerByte),
        }
    }

    /// The metrics of a kind of task; the second number is how many of them there are without a list.
    fn of(output: OutputType) -> (&'static [Self], usize) {
        match output {
            OutputType::MultipleChoice => {
                (&[Self::Acc, Self::AccNorm, Self::AccBytes, Self::ExactMatch], 2)
            }
            OutputType::LogLikelihood => (&[Self::Perplexity, Self::Acc], 2),
            OutputType::LogLikelihoodRolling => {
                (&[Self::WordPerplexity, Self::BytePerplexity, Self::BitsPerByte], 3)
            }
            OutputType::GenerateUntil => (&[Self::ExactMatch], 1),
        }
    }
}

impl MetricSpec {
    /// The metrics of a task.
    pub(crate) fn list(entries: &Entries, output: OutputType) -> Result<Vec<Self>, TaskError> {
        const KEY: &str = "metric_list";
        let (known, n_usual) = MetricKind::of(output);
        let Some(value) = entries.get(KEY) else {
            let usual = known[..n_usual].iter();
            return Ok(usual
                .map(|&kind| Self { kind, comparison: Comparison::default() })
                .collect());
        };
        let wrong = |problem: String| entries.error(KEY, problem, None);
        let list = value.as_sequence().filter(|list| !list.is_empty()).ok_or_else(|| {
            wrong(format!("`{KEY}` is {}; expected a list of metrics", kind(value)))
        })?;
        let mut metrics = Vec::new();
        for entry in list {
            let name = entry.get("metric").and_then(Value::as_str).unwrap_or_default();
            let found = MetricKind::ALL.iter().find(|(other, _)| *other == name);
            let Some(&(_, kind)) = found.filter(|(_, kind)| known.contains(kind)) else {
                let known: Vec<String> =
                    known.iter().map(|kind| format!("`{}`", kind.name())).collect();
                return Err(wrong(format!(
                    "`{KEY}`: `{name}` is not a metric that is understood for this kind of task; \
                     expected one of {}",
                    known.join(", ")
                )));
            };
            let of = kind.aggregation().0;
            let comparison = Comparison::parse(entry, kind, of)
                .map_err(|problem| wrong(format!("`{KEY}`, `{name}`: {problem}")))?;
            metrics.push(Self { kind, comparison });
        }
        Ok(metrics)
    }

    /// Whether it asks for whether tokens are the likeliest.
    pub(crate) fn needs_greedy(&self, output: OutputType) -> bool {
        match self.kind {
            MetricKind::ExactMatch => output == OutputType::MultipleChoice,
            MetricKind::Acc => output == OutputType::LogLikelihood,
            _ => false,
        }
    }
}

impl Comparison {
    fn parse(entry: &Value, metric: MetricKind, aggregation: &str) -> Result<Self, String> {
        let mut comparison = Self::default();
        for (key, value) in entry.as_mapping().into_iter().flatten() {
            let flag = || value.as_bool().ok_or_else(|| format!("{} is no boolean", kind(value)));
            match (key.as_str().unwrap_or_default(), metric) {
                ("metric", _) => {}
                ("higher_is_better", _) => {
                    flag()?;
                }
                ("hf_evaluate", _) if value.as_bool() == Some(false) => {}
                ("aggregation", _) if value.as_str() == Some(aggregation) => {}
                ("aggregation", _) => {
                    let found = kind(value);
                    return Err(format!("`aggregation` is {found}; expected `{aggregation}`"));
                }
                ("ignore_case", MetricKind::ExactMatch) => comparison.ignore_case = flag()?,
                ("ignore_punctuation", MetricKind::ExactMatch) => {
                    comparison.ignore_punctuation = flag()?;
                }
                ("ignore_numbers", MetricKind::ExactMatch) => comparison.ignore_numbers = flag()?,
                ("regexes_to_ignore", MetricKind::ExactMatch) => {
                    let patterns: Option<Vec<&str>> =
                        value.as_sequence().and_then(|all| all.iter().map(Value::as_str).collect());
                    for pattern in patterns.ok_or("`regexes_to_ignore` is no list of texts")? {
                        let regex = Regex::new(pattern)
                            .map_err(|error| format!("the pattern `{pattern}`: {error}"))?;
                        comparison.regexes.push(regex);
                    }
                }
                _ => return Err(format!("{} is not an option of it", kind(key))),
            }
        }
        Ok(comparison)
    }

    /// What of a text is compared.
    fn counted(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for regex in &self.regexes {
            text = regex.replace_all(&text, "").into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.ignore_numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        text
    }
}

/// The values of one metric under one filter.
struct Values {
    metric: usize,
    filter: usize,
    /// Each with its weight.
    values: Vec<(f64, f64)>,
}

/// What the answers to the rows so far are worth.
pub(crate) struct Measured<'t> {
    task: &'t Task,
    values: Vec<Values>,
    n_documents: usize,
}

impl<'t> Measured<'t> {
    pub(crate) fn new(task: &'t Task) -> Self {
        let metrics = 0..task.metrics.len();
        let pairs = (0..task.filters.len()).flat_map(|f| metrics.clone().map(move |m| (m, f)));
        let values =
            pairs.map(|(metric, filter)| Values { metric, filter, values: Vec::new() }).collect();
        Self { task, values, n_documents: 0 }
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, target: &Target, answers: &[Answer]) {
        self.n_documents += 1;
        for values in &mut self.values {
            let spec = &self.task.metrics[values.metric];
            let filter = &self.task.filters[values.filter];
            let value = match target {
                Target::Answer(right) => {
                    let texts = answers.iter().map(|answer| match answer {
                        Answer::Text(text) => text.clone(),
                        other => panic!("{other:?} is no text"),
                    });
                    // Greedy answers to the same prompt are the same.
                    let texts: Vec<String> = texts.cycle().take(self.task.repeats).collect();
                    let found = spec.comparison.counted(&filter.apply(&texts));
                    let is_right = |one: &String| spec.comparison.counted(one) == found;
                    (share(right.iter().any(is_right)), 1.0)
                }
                target => value(spec.kind, target, answers),
            };
            values.values.push(value);
        }
    }

    /// The means.
    pub(crate) fn scores(&self, n_examples: usize, n_rows: usize) -> TaskScores {
        let metrics = self.values.iter().map(|values| {
            let kind = self.task.metrics[values.metric].kind;
            let (_, aggregation) = kind.aggregation();
            MetricValue {
                metric: kind.name(),
                filter: self.task.filters[values.filter].name.clone(),
                value: aggregation.value(&values.values),
                std_error: aggregation.std_error(&values.values),
            }
        });
        TaskScores {
            name: self.task.name.clone(),
            alias: self.task.alias.clone(),
            version: self.task.version.clone(),
            n_samples: self.n_documents,
            n_rows,
            num_fewshot: n_examples,
            metrics: metrics.collect(),
        }
    }
}

fn share(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
}

/// The value of one metric for a row, and its weight.
fn value(kind: MetricKind, target: &Target, answers: &[Answer]) -> (f64, f64) {
    let likelihoods = || {
        answers.iter().map(|answer| match answer {
            Answer::LogLikelihood { logp, is_greedy } => (*logp, *is_greedy),
            other => panic!("{other:?} is no likelihood"),
        })
    };
    let best = |lengths: &[usize]| {
        let divided = likelihoods().zip(lengths).map(|((logp, _), &n)| logp / n as f64);
        first_max(divided)
    };
    match (target, kind) {
        (Target::Choice(gold), MetricKind::ExactMatch) => {
            let greedy: Vec<bool> = likelihoods().map(|(_, is_greedy)| is_greedy).collect();
            (share(gold.right.iter().any(|&right| greedy[right])), 1.0)
        }
        (Target::Choice(gold), kind) => {
            let best = match kind {
                MetricKind::AccNorm => best(&gold.n_chars),
                MetricKind::AccBytes => best(&gold.n_bytes),
                _ => first_max(likelihoods().map(|(logp, _)| logp)),
            };
            (share(gold.right.contains(&best)), 1.0)
        }
        (Target::Processed(processing, labels), _) => {
            let logps: Vec<f64> = likelihoods().map(|(logp, _)| logp).collect();
            (processing.score(&logps, labels), 1.0)
        }
        (Target::Likelihood, kind) => {
            let (logp, is_greedy) = likelihoods().next().unwrap_or_default();
            (if kind == MetricKind::Acc { share(is_greedy) } else { logp }, 1.0)
        }
        (Target::Whole { n_words, n_bytes }, kind) => {
            let [Answer::Rolling(logp)] = answers else { panic!("not the answer to a whole text") };
            let n = if kind == MetricKind::WordPerplexity { n_words } else { n_bytes };
            (*logp, *n as f64)
        }
        (Target::Answer(_), _) => panic!("answers are compared after their filters"),
    }
}

/// The place of the largest value; the first of equal ones.
fn first_max(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

impl Aggregation {
    fn value(self, values: &[(f64, f64)]) -> f64 {
        let sum: f64 = values.iter().map(|(value, _)| value).sum();
        let weight: f64 = values.iter().map(|(_, weight)| weight).sum();
        let mean = sum / weight;
        match self {
            Self::Mean => mean,
            Self::Perplexity | Self::WeightedPerplexity => (-mean).exp(),
            Self::BitsPerByte => -mean / std::f64::consts::LN_2,
        }
    }

    /// The standard error; none for fewer than two rows, and where the harness has none.
    fn std_error(self, values: &[(f64, f64)]) -> Option<f64> {
        if values.len() < 2 {
            return None;
        }
        let plain: Vec<f64> = values.iter().map(|(value, _)| *value).collect();
        match self {
            Self::Mean => Some(deviation(&plain) / (plain.len() as f64).sqrt()),
            Self::Perplexity => Some(bootstrapped(&plain)),
            Self::WeightedPerplexity | Self::BitsPerByte => None,
        }
    }
}

/// The standard deviation over n - 1.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt()
}

/// The standard error of a perplexity, by bootstrap with the harness's draws.
fn bootstrapped(values: &[f64]) -> f64 {
    let n = values.len();
    let (n_seeds, n_each) = BOOTSTRAP;
    let mut perplexities = Vec::with_capacity((n_seeds * n_each) as usize);
    for seed in 0..n_seeds {
        let mut random = PythonRandom::new(seed);
        for _ in 0..n_each {
            let sum: f64 = (0..n).map(|_| values[random.choice(n)]).sum();
            perplexities.push((-sum / n as f64).exp());
        }
    }
    deviation(&perplexities)
}

#[cfg(test)]
mod tests {
    use super::{Aggregation, MetricSpec};
    use crate::definition::OutputType;
    use crate::source::parse;

    fn weighted(values: &[(f64, f64)], of: Aggregation) -> (f64, Option<f64>) {
        (of.value(values), of.std_error(values))
    }

    fn plain(values: &[f64]) -> Vec<(f64, f64)> {
        values.iter().map(|&value| (value, 1.0)).collect()
    }

    #[test]
    fn a_mean_has_the_error_of_a_sample() {
        let (mean, error) = weighted(&plain(&[1.0, 0.0, 1.0, 1.0]), Aggregation::Mean);
        // Variance (3 * 0.0625 + 0.5625) / 3 = 0.25; its root over 2.
        assert_eq!((mean, error), (0.75, Some(0.25)));
        assert_eq!(weighted(&plain(&[1.0]), Aggregation::Mean), (1.0, None));
    }

    /// By `lm_eval.api.metrics` 0.4.13: `perplexity` and its `bootstrap_stderr` with 100000 samples.
    #[test]
    fn a_perplexity_has_the_harness_bootstrap() {
        let (value, error) =
            weighted(&plain(&[-1.0, -2.5, -0.25, -3.0, -1.75]), Aggregation::Perplexity);
        assert!((value - 5.473_947_391_727_2).abs() < 1e-12, "{value}");
        let error = error.unwrap();
        assert!((error - 2.720_216_828_645_774).abs() < 1e-9, "{error}");
    }

    #[test]
    fn whole_texts_weigh_by_their_length() {
        let values = [(-10.0, 4.0), (-30.0, 6.0)];
        let (perplexity, error) = weighted(&values, Aggregation::WeightedPerplexity);
        assert!((perplexity - 4_f64.exp()).abs() < 1e-12);
        assert_eq!(error, None);
        let (bits, _) = weighted(&values, Aggregation::BitsPerByte);
        assert!((bits - 4.0 / 2_f64.ln()).abs() < 1e-12);
    }

    fn listed(yaml: &str) -> Result<Vec<MetricSpec>, String> {
        let entries = parse(yaml, "t.yaml", None, 0).unwrap();
        MetricSpec::list(&entries, OutputType::GenerateUntil).map_err(|error| error.to_string())
    }

    /// By `exact_match_hf_evaluate` of 0.4.13.
    #[test]
    fn what_does_not_count_is_taken_out_of_both_texts() {
        let gsm8k = r#"metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true,
            ignore_case: true, ignore_punctuation: false,
            regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]}]"#;
        let spec = &listed(gsm8k).unwrap()[0];
        assert_eq!(spec.comparison.counted("It is\n#### $1,200."), "1200");
        assert_eq!(spec.comparison.counted("Ab. C"), "ab. c");
        let plain = &listed(
            "metric_list: [{metric: exact_match, ignore_punctuation: true, \
                             ignore_numbers: true}]",
        )
        .unwrap()[0];
        assert_eq!(plain.comparison.counted("A-1, b! é"), "A b é");
    }

    #[test]
    fn metrics_that_are_not_understood_are_refused_by_name() {
        for (yaml, text) in [
            ("[{metric: bleu}]", "`bleu` is not a metric that is understood"),
            ("[{metric: acc}]", "`acc` is not a metric that is understood for this kind"),
            ("[{metric: exact_match, aggregation: median}]", "expected `mean`"),
            ("[{metric: exact_match, k: 3}]", "the text `k` is not an option of it"),
            ("[]", "expected a list of metrics"),
        ] {
            let refused = listed(&format!("metric_list: {yaml}")).expect_err(yaml);
            assert!(refused.contains(text), "{refused}");
        }
    }
}
