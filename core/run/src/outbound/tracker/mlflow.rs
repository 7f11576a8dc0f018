//! A run on an MLflow server: the address and who asks come from the environment, under the names that
//! MLflow's own client reads.
//!
//! The address is the operator's own, so that it may lie on this machine or inside the network. Offline
//! only such addresses are reached.

use super::super::route::{self, OutboundError};
use super::Row;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer, Started};
use crate::plan::Plan;
use crate::training::Outcome;
use forgelm_artifact::UtcTime;
use forgelm_artifact::write;
use forgelm_config::resolved_json;
use forgelm_evidence::documents::shown_config;
use forgelm_outbound::address::Reach;
use forgelm_outbound::destination::Destination;
use forgelm_outbound::guard::Guard;
use forgelm_outbound::mlflow::queue::{Queue, Told};
use forgelm_outbound::mlflow::{About, Ids, Metric, Server, Status, metric_name};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// The variable with the server's address.
pub(super) const ADDRESS: &str = "MLFLOW_TRACKING_URI";
const EXPERIMENT: &str = "MLFLOW_EXPERIMENT_NAME";
const TOKEN: &str = "MLFLOW_TRACKING_TOKEN";
const USER: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD: &str = "MLFLOW_TRACKING_PASSWORD";
const CERTIFICATES: &str = "MLFLOW_TRACKING_SERVER_CERT_PATH";
/// The experiment where no other is named; a server has it from its beginning.
const DEFAULT_EXPERIMENT: &str = "Default";
/// The longest that a request takes.
const SECONDS: u64 = 30;
/// Sections of the config whose keys become parameters.
const SECTIONS: [&str; 4] = ["model", "lora", "training", "data"];
/// Where the server's names for the run are kept, for a run that goes on.
pub(super) const FILE: &str = "runs/mlflow.json";

/// A run on a server.
pub(super) struct Mlflow {
    /// Until the end.
    queue: Option<Queue>,
    shown: String,
    about: About,
    file: PathBuf,
}

impl Mlflow {
    pub(super) fn open(
        plan: &Plan,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, OutboundError> {
        let variable = |name: &str| (env.variable)(name);
        let text = variable(ADDRESS).ok_or(OutboundError::NoTracker { variable: ADDRESS })?;
        let address = Destination::parse(&text).map_err(|source| OutboundError::Address {
            place: "training.report_to",
            variable: Some(ADDRESS.to_owned()),
            source,
        })?;
        if address.is_plain() && !address.is_loopback() {
            let text = format!("mlflow {address}: what is sent can be read on the way");
            observer.observe(&Event::Warning(text));
        }
        // The order of MLflow's own client.
        let address = match (variable(USER), variable(PASSWORD), variable(TOKEN)) {
            (Some(user), Some(password), _) => address.with_password(&user, &password),
            (_, _, Some(token)) => address.with_token(&token),
            _ => address,
        };
        let trust = route::trust(CERTIFICATES, variable(CERTIFICATES).as_deref())?;
        let reach = if offline { Reach::Inside } else { Reach::PublicAndInside };
        let shown = address.to_string();
        let server = Server { guard: Guard::new(reach, &trust, SECONDS), address };
        let queue = Queue::start(server, env.clock.clone()).map_err(OutboundError::Thread)?;
        let config = shown_config(&resolved_json(&plan.run));
        let about = About {
            experiment: variable(EXPERIMENT).unwrap_or_else(|| DEFAULT_EXPERIMENT.to_owned()),
            name: plan.run.name(),
            tags: vec![
                ("forgelm.version".to_owned(), crate::dossier::VERSION.to_owned()),
                ("forgelm.config_hash".to_owned(), plan.config_hash.clone()),
            ],
            params: params(&config),
            ..About::default()
        };
        Ok(Self { queue: Some(queue), shown, about, file: plan.output.root().join(FILE) })
    }

    pub(super) fn start(&mut self, started: &Started, now: UtcTime) {
        let continues = (started.n_steps_done > 0).then(|| self.kept()).flatten();
        let run_id = started.run_id.clone();
        let Some(queue) = &self.queue else { return };
        queue.begin(About { run_id, continues, ..self.about.clone() }, milliseconds(now));
    }

    pub(super) fn put(&mut self, row: &Row) {
        let at_ms = milliseconds(row.at);
        let Some(queue) = &self.queue else { return };
        queue.log(row.values.iter().map(|(name, value)| Metric {
            name: metric_name(name),
            value: *value,
            step: row.step,
            at_ms,
        }));
    }

    /// What has become known: a notice with the run's name on the server, and the first problem.
    pub(super) fn news(&mut self) -> (Option<String>, Option<String>) {
        let Some(queue) = &self.queue else { return (None, None) };
        let (notice, kept) = self.take(queue.ids()).unzip();
        let problem = queue.problems().into_iter().next();
        (notice, kept.flatten().or(problem.map(|text| self.named(&text))))
    }

    /// Keeps the server's names for the run: a notice, and a warning where they cannot be kept.
    fn take(&self, ids: Option<Ids>) -> Option<(String, Option<String>)> {
        let ids = ids?;
        let (experiment, run) = (&self.about.experiment, &ids.run_id);
        let notice = self.named(&format!("experiment `{experiment}`, run {run}"));
        Some((notice, self.keep(&ids)))
    }

    pub(super) fn end(&mut self, result: &Result<Outcome, RunError>, now: UtcTime) {
        let status = match result {
            Ok(Outcome::Interrupted { .. }) => Status::Killed,
            Ok(_) => Status::Finished,
            Err(_) => Status::Failed,
        };
        if let Some(queue) = &self.queue {
            queue.end(status, milliseconds(now));
        }
    }

    /// Waits for what is on its way, `at_most` so long; a notice as in [`Mlflow::news`], and warnings.
    pub(super) fn finish(mut self, at_most: Duration) -> (Option<String>, Vec<String>) {
        let Some(queue) = self.queue.take() else { return (None, Vec::new()) };
        let Told { problems, n_lost, ids } = queue.finish(at_most);
        let (notice, kept) = self.take(ids).unzip();
        let first = problems.first().map(|text| self.named(text));
        let lost = (n_lost > 0).then(|| {
            self.named(&format!("{n_lost} numbers did not arrive; metrics.jsonl has them"))
        });
        (notice, kept.flatten().into_iter().chain(first).chain(lost).collect())
    }

    fn named(&self, text: &str) -> String {
        format!("mlflow {}: {text}", self.shown)
    }

    /// Keeps the server's names for the run; a warning where that fails.
    fn keep(&self, ids: &Ids) -> Option<String> {
        let text = json!({"experiment_id": ids.experiment_id, "run_id": ids.run_id}).to_string();
        let dir = self.file.parent().unwrap_or(&self.file);
        let written = write::create_dir_all_durable(dir)
            .and_then(|()| write::atomic(&self.file, (text + "\n").as_bytes()));
        let error = written.err()?;
        Some(format!("mlflow: a continued run will be a new one on the server: {error}"))
    }

    fn kept(&self) -> Option<Ids> {
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(&self.file).ok()?).ok()?;
        let text = |key: &str| Some(kept.get(key)?.as_str()?.to_owned());
        Some(Ids { experiment_id: text("experiment_id")?, run_id: text("run_id")? })
    }
}

fn milliseconds(at: UtcTime) -> i64 {
    at.0.div_euclid(1000)
}

/// Keys of the config with their values, flat; secrets are replaced already.
fn params(config: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for section in SECTIONS {
        flatten(section, &config[section], &mut found);
    }
    found
}

fn flatten(name: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (key, value) in members {
                flatten(&format!("{name}.{key}"), value, found);
            }
        }
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => found.push((name.to_owned(), text.clone())),
        other => found.push((name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::params;
    use serde_json::json;

    #[test]
    fn parameters_are_the_flat_keys_of_what_decides_training() {
        let config = json!({
            "model": {"name_or_path": "m", "revision": null, "moe": {"x": true}},
            "lora": {"r": 8, "target_modules": ["a", "b"]},
            "training": {"run_name": "", "learning_rate": 2e-5},
            "webhook": {"timeout": 5},
        });
        let expected = [
            ("model.name_or_path", "m"),
            ("model.moe.x", "true"),
            ("lora.r", "8"),
            ("lora.target_modules", "[\"a\",\"b\"]"),
            ("training.learning_rate", "0.00002"),
        ];
        let found = params(&config);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }
}
