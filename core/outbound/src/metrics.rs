//! Numbers of a run for monitors: one set of samples, and the three forms in which it leaves.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up and down.
    Gauge,
    /// Up alone, from zero.
    Counter,
}

/// What is measured.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Lower case, with `_`; without the `forgelm_` that each gets.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// Where a number has a name of its own (of an objective, or an evaluator): what stands before it
    /// in a flat list of names.
    pub prefix: &'static str,
}

/// The numbers of a run at one moment: each family once, or once for each name in it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    labels: Vec<(&'static str, String)>,
    samples: BTreeMap<(&'static str, String), (&'static Family, f64)>,
}

impl Metrics {
    /// Without numbers yet; every number will carry these labels.
    #[must_use]
    pub fn new(labels: Vec<(&'static str, String)>) -> Self {
        Self { labels, samples: BTreeMap::new() }
    }

    /// Sets a label.
    pub fn label(&mut self, name: &'static str, value: &str) {
        match self.labels.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => value.clone_into(known),
            None => self.labels.push((name, value.to_owned())),
        }
    }

    /// Sets a number.
    pub fn set(&mut self, family: &'static Family, value: f64) {
        self.set_named(family, "", value);
    }

    /// Sets a number that has a name of its own.
    pub fn set_named(&mut self, family: &'static Family, name: &str, value: f64) {
        self.samples.insert((family.name, name.to_owned()), (family, value));
    }

    /// Removes the numbers of a family.
    pub fn clear(&mut self, family: &'static Family) {
        self.samples.retain(|(name, _), _| *name != family.name);
    }

    /// Whether there is no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The text exposition format of Prometheus, version 0.0.4.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let mut family_before = None;
        for ((_, name), (family, value)) in &self.samples {
            if family_before != Some(family.name) {
                family_before = Some(family.name);
                let kind = match family.kind {
                    Kind::Gauge => "gauge",
                    Kind::Counter => "counter",
                };
                let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
                // Writing to a string cannot fail.
                let _ = writeln!(text, "# HELP forgelm_{} {help}", family.name);
                let _ = writeln!(text, "# TYPE forgelm_{} {kind}", family.name);
            }
            let mut labels: Vec<String> =
                self.labels.iter().map(|(name, value)| label(name, value)).collect();
            if !name.is_empty() {
                labels.push(label("name", name));
            }
            let labels = labels.join(",");
            let _ = writeln!(text, "forgelm_{}{{{labels}}} {}", family.name, number(*value));
        }
        text
    }

    /// Series of Datadog's API, version 2, with one point each at `seconds` since 1970. Numbers that
    /// are not finite are left out: JSON cannot say them.
    #[must_use]
    pub fn datadog(&self, seconds: i64) -> Value {
        /// A gauge: totals are sent as they stand, and not as what was added since the last time.
        const GAUGE: u64 = 3;
        let tags: Vec<String> =
            self.labels.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        let series: Vec<Value> = self
            .finite()
            .map(|(name, family, value)| {
                let own = (!name.is_empty()).then(|| format!("name:{name}"));
                let tags: Vec<&String> = tags.iter().chain(&own).collect();
                json!({
                    "metric": format!("forgelm.{}", family.name),
                    "type": GAUGE,
                    "points": [{"timestamp": seconds, "value": value}],
                    "tags": tags,
                })
            })
            .collect();
        json!({"series": series})
    }

    /// One flat object of names and numbers; those that are not finite are left out.
    #[must_use]
    pub fn flat(&self) -> Map<String, Value> {
        let named = |(name, family, value): (&str, &Family, f64)| {
            let key = match name {
                "" => family.name.to_owned(),
                name => format!("{}{name}", family.prefix),
            };
            (key, json!(value))
        };
        self.finite().map(named).collect()
    }

    fn finite(&self) -> impl Iterator<Item = (&str, &'static Family, f64)> {
        let samples = self.samples.iter().filter(|(_, (_, value))| value.is_finite());
        samples.map(|((_, name), (family, value))| (name.as_str(), *family, *value))
    }
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// As Prometheus writes what is not finite.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Kind, Metrics};
    use serde_json::json;

    static LOSS: Family =
        Family { name: "train_loss", help: "Loss.", kind: Kind::Gauge, prefix: "" };
    static TOKENS: Family =
        Family { name: "tokens_total", help: "A \\ and\na line.", kind: Kind::Counter, prefix: "" };
    static OWN: Family =
        Family { name: "train_metric", help: "Own.", kind: Kind::Gauge, prefix: "train_" };

    fn metrics() -> Metrics {
        let mut metrics = Metrics::new(vec![("model", "a \"b\"\\\nc".to_owned())]);
        metrics.set(&LOSS, 2.0);
        metrics.set(&LOSS, 0.5);
        metrics.set(&TOKENS, 12_345_678.0);
        metrics.set_named(&OWN, "rewards/margins", f64::NAN);
        metrics.set_named(&OWN, "rewards_margins", -1e-9);
        metrics
    }

    #[test]
    fn the_text_has_each_family_once_and_escapes_what_must_be() {
        let expected = "\
# HELP forgelm_tokens_total A \\\\ and\\na line.
# TYPE forgelm_tokens_total counter
forgelm_tokens_total{model=\"a \\\"b\\\"\\\\\\nc\"} 12345678
# HELP forgelm_train_loss Loss.
# TYPE forgelm_train_loss gauge
forgelm_train_loss{model=\"a \\\"b\\\"\\\\\\nc\"} 0.5
# HELP forgelm_train_metric Own.
# TYPE forgelm_train_metric gauge
forgelm_train_metric{model=\"a \\\"b\\\"\\\\\\nc\",name=\"rewards/margins\"} NaN
forgelm_train_metric{model=\"a \\\"b\\\"\\\\\\nc\",name=\"rewards_margins\"} -0.000000001
";
        assert_eq!(metrics().prometheus(), expected);
        assert_eq!(super::number(f64::INFINITY), "+Inf");
        assert_eq!(super::number(f64::NEG_INFINITY), "-Inf");
    }

    #[test]
    fn datadog_gets_a_point_for_each_finite_number() {
        let mut metrics = metrics();
        metrics.label("model", "m");
        metrics.label("run_id", "fg-1");
        let series = metrics.datadog(1_700_000_000);
        let series = series["series"].as_array().unwrap();
        assert_eq!(series.len(), 3, "NaN is left out");
        assert_eq!(
            series[1],
            json!({
                "metric": "forgelm.train_loss",
                "type": 3,
                "points": [{"timestamp": 1_700_000_000, "value": 0.5}],
                "tags": ["model:m", "run_id:fg-1"],
            })
        );
        assert_eq!(series[2]["tags"], json!(["model:m", "run_id:fg-1", "name:rewards_margins"]));
    }

    #[test]
    fn a_flat_list_has_the_names_of_the_run() {
        let flat = metrics().flat();
        assert_eq!(
            serde_json::Value::Object(flat),
            json!({"tokens_total": 12_345_678.0, "train_loss": 0.5, "train_rewards_margins": -1e-9})
        );
        let mut metrics = metrics();
        metrics.clear(&OWN);
        metrics.clear(&LOSS);
        metrics.clear(&TOKENS);
        assert!(metrics.is_empty());
    }
}
