//! The numbers of a run for monitors: as a file and a page for Prometheus, or sent to Datadog or to a
//! webhook, while the run works and when it ends.

use super::route::{self, OutboundError};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use crate::training::Outcome;
use forgelm_artifact::{Clock, write};
use forgelm_config::{MetricsExport, Monitoring};
use forgelm_outbound::courier::{Courier, Message, Route, Undelivered};
use forgelm_outbound::guard::Guard;
use forgelm_outbound::listen::Page;
use forgelm_outbound::metrics::{Family, Kind, Metrics};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Pushes are no closer together than this.
const PUSH_EVERY: Duration = Duration::from_secs(10);
/// Before the second try.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Tries after the first: what a push says is soon old.
const N_RETRIES: u32 = 1;
/// The file for Prometheus, in the run's folder.
pub(crate) const TEXT_FILE: &str = "metrics.prom";

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: Kind::Gauge, prefix: "" }
}

static STATE: Family = Family {
    name: "run_state",
    help: "1 for the state of the run: running, succeeded, failed or interrupted.",
    kind: Kind::Gauge,
    prefix: "run_state_",
};
static STEP: Family = gauge("train_step", "Optimizer steps done.");
static STEPS: Family = gauge("train_steps_planned", "Optimizer steps in all.");
static EPOCH: Family = gauge("train_epoch", "Passes over the data so far.");
static LOSS: Family = gauge("train_loss", "Mean loss of the last step.");
static LEARNING_RATE: Family = gauge("train_learning_rate", "Learning rate of the last step.");
static GRAD_NORM: Family =
    gauge("train_grad_norm", "Norm of the gradient of the last step before clipping.");
static SPEED: Family = gauge("train_tokens_per_second", "Tokens per second of the last step.");
static SECONDS: Family = gauge("train_step_seconds", "Wall time of the last step.");
static TOKENS: Family = Family {
    name: "train_trained_tokens_total",
    help: "Tokens trained since the run began.",
    kind: Kind::Counter,
    prefix: "",
};
static TRAIN: Family = Family {
    name: "train_metric",
    help: "What the objective measured in the last step, by name.",
    kind: Kind::Gauge,
    prefix: "train_",
};
static EVAL_STEP: Family = gauge("eval_step", "Steps done at the last evaluation.");
static EVAL_LOSS: Family = gauge("eval_loss", "Mean loss over the held-out records.");
static EVAL: Family = Family {
    name: "eval_metric",
    help: "What the objective measured over the held-out records, by name.",
    kind: Kind::Gauge,
    prefix: "eval_",
};
static FINAL: Family = Family {
    name: "run_metric",
    help: "The final numbers of the run, by name.",
    kind: Kind::Gauge,
    prefix: "",
};

/// Where the numbers of a run go.
pub(super) struct Monitor {
    metrics: Metrics,
    export: MetricsExport,
    run_id: Option<String>,
    text_file: Option<PathBuf>,
    page: Option<Page>,
    courier: Option<Courier>,
    /// When something was last pushed.
    pushed_at: Option<Duration>,
    n_failed: usize,
    clock: Arc<dyn Clock>,
}

impl Monitor {
    pub(super) fn open(
        plan: &Plan,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, OutboundError> {
        let monitoring = plan.run.monitoring.as_ref().filter(|monitoring| monitoring.enabled);
        let Some(monitoring) = monitoring else { return Ok(None) };
        let export = monitoring.metrics_export;
        if export == MetricsExport::None {
            return Ok(None);
        }
        let is_prometheus = export == MetricsExport::Prometheus;
        let page = match monitoring.listen.as_deref().filter(|_| is_prometheus) {
            Some(address) => Some(page(address, observer)?),
            None => None,
        };
        let metrics = Metrics::new(vec![
            ("model", plan.run.model.name_or_path.clone()),
            ("risk_tier", plan.run.risk_tier().to_string()),
        ]);
        Ok(Some(Self {
            metrics,
            export,
            run_id: None,
            text_file: is_prometheus.then(|| plan.output.root().join(TEXT_FILE)),
            page,
            courier: courier(monitoring, offline, env, observer)?,
            pushed_at: None,
            n_failed: 0,
            clock: env.clock.clone(),
        }))
    }

    /// Takes what an event says; a warning where it could not be written.
    pub(super) fn see(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Started(started) => {
                self.run_id = Some(started.run_id.clone());
                self.metrics.label("run_id", &started.run_id);
                self.set(&STEPS, started.n_steps);
                self.set(&STEP, started.n_steps_done);
                self.metrics.set_named(&STATE, "running", 1.0);
                self.publish(false)
            }
            Event::Step(step) => {
                self.set(&STEP, step.step);
                self.set(&TOKENS, step.n_trained_tokens_total);
                for (family, value) in [
                    (&EPOCH, step.epoch),
                    (&LOSS, step.loss),
                    (&LEARNING_RATE, step.learning_rate),
                    (&GRAD_NORM, step.grad_norm),
                    (&SPEED, step.tokens_per_second()),
                    (&SECONDS, step.seconds),
                ] {
                    self.metrics.set(family, value);
                }
                for (name, value) in &step.metrics {
                    self.metrics.set_named(&TRAIN, name, *value);
                }
                self.show();
                if step.log { self.publish(false) } else { None }
            }
            Event::Evaluation(evaluation) => {
                self.set(&EVAL_STEP, evaluation.step);
                self.metrics.set(&EVAL_LOSS, evaluation.loss);
                for (name, value) in &evaluation.metrics {
                    self.metrics.set_named(&EVAL, name, *value);
                }
                self.publish(false)
            }
            _ => None,
        }
    }

    /// Takes the end; a warning where it could not be written.
    pub(super) fn ended(&mut self, result: &Result<Outcome, RunError>) -> Option<String> {
        // A run that did not begin has nothing to show.
        self.run_id.as_ref()?;
        let state = match result {
            Ok(
                ended @ (Outcome::Completed(completed)
                | Outcome::Staged(completed)
                | Outcome::Reverted(completed)),
            ) => {
                for (name, value) in &completed.metrics {
                    self.metrics.set_named(&FINAL, name, *value);
                }
                match ended {
                    Outcome::Staged(_) => "staged",
                    Outcome::Reverted(_) => "reverted",
                    _ => "succeeded",
                }
            }
            Ok(Outcome::Interrupted { .. }) => "interrupted",
            Ok(
                Outcome::AlreadyComplete { .. }
                | Outcome::AlreadyRejected { .. }
                | Outcome::AlreadyReverted { .. }
                | Outcome::Waiting { .. }
                | Outcome::Compared { .. },
            ) => return None,
            Err(_) => "failed",
        };
        self.metrics.clear(&STATE);
        self.metrics.set_named(&STATE, state, 1.0);
        self.publish(true)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn set(&mut self, family: &'static Family, count: u64) {
        self.metrics.set(family, count as f64);
    }

    fn show(&self) {
        if let Some(page) = &self.page {
            page.show(self.metrics.prometheus());
        }
    }

    /// Shows, writes and, if it is time, pushes what is known.
    fn publish(&mut self, is_last: bool) -> Option<String> {
        self.show();
        self.push(is_last);
        let path = self.text_file.as_ref()?;
        let error = write::atomic(path, self.metrics.prometheus().as_bytes()).err()?;
        // Once is enough: the disk is full, or the folder is gone.
        self.text_file = None;
        Some(format!("monitoring: {TEXT_FILE} is written no more: {error}"))
    }

    fn push(&mut self, is_last: bool) {
        let Some(courier) = &self.courier else { return };
        let now = self.clock.monotonic();
        let is_due = self.pushed_at.is_none_or(|at| now.saturating_sub(at) >= PUSH_EVERY);
        if !is_due && !is_last {
            return;
        }
        self.pushed_at = Some(now);
        let at = self.clock.utc();
        let (content_type, body) = match self.export {
            MetricsExport::None => return,
            MetricsExport::Prometheus => ("text/plain; version=0.0.4", self.metrics.prometheus()),
            MetricsExport::Datadog => {
                let series = self.metrics.datadog(at.0.div_euclid(1_000_000));
                ("application/json", series.to_string())
            }
            MetricsExport::CustomWebhook => {
                let body = json!({
                    "run_id": self.run_id,
                    "generated_at": at.to_string(),
                    "metrics": self.metrics.flat(),
                });
                ("application/json", body.to_string())
            }
        };
        let label = "metrics".to_owned();
        courier.send(Message { label, content_type, body: body.into_bytes(), signer: None });
    }

    /// A warning for the first push that did not arrive since the run began.
    pub(super) fn failures(&mut self) -> Option<String> {
        let failures = self.courier.as_ref().map(Courier::failures).unwrap_or_default();
        self.first_failure(failures)
    }

    fn first_failure(&mut self, failures: Vec<Undelivered>) -> Option<String> {
        let is_first = self.n_failed == 0;
        self.n_failed += failures.len();
        let first = failures.into_iter().next().filter(|_| is_first)?;
        let Undelivered { destination, reason, .. } = first;
        Some(format!("monitoring {destination}: metrics were not delivered: {reason}"))
    }

    /// Waits for what is on its way, `at_most` so long; how many pushes did not arrive, in words.
    pub(super) fn finish(mut self, at_most: Duration) -> Vec<String> {
        let Some(courier) = self.courier.take() else { return Vec::new() };
        let failures = courier.finish(at_most);
        let mut told: Vec<String> = self.first_failure(failures).into_iter().collect();
        if self.n_failed > 1 {
            told.push(format!("monitoring: {} pushes did not arrive in all", self.n_failed));
        }
        told
    }
}

/// The page of `monitoring.listen`.
fn page(address: &str, observer: &mut dyn Observer) -> Result<Page, OutboundError> {
    let refused = || OutboundError::Listen { address: address.to_owned() };
    // Only numbers: a name could stand for another machine tomorrow.
    let parsed: SocketAddr = match address.strip_prefix("localhost:") {
        Some(port) => {
            let port: u16 = port.parse().map_err(|_| refused())?;
            SocketAddr::from(([127, 0, 0, 1], port))
        }
        None => address.parse().map_err(|_| refused())?,
    };
    let page = Page::listen(parsed)
        .map_err(|source| OutboundError::NotFree { address: parsed, source })?;
    if !parsed.ip().is_loopback() {
        let text = format!(
            "monitoring: the page on {} has no password and can be read from other machines",
            page.address()
        );
        observer.observe(&Event::Warning(text));
    }
    let text = format!("metrics at http://{}/metrics", page.address());
    observer.observe(&Event::Notice(text));
    Ok(page)
}

/// Whoever takes pushes, if somebody does.
fn courier(
    monitoring: &Monitoring,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Option<Courier>, OutboundError> {
    let written = ("monitoring.endpoint", Some(monitoring.endpoint.as_str()));
    let named = ("monitoring.endpoint_env", monitoring.endpoint_env.as_deref());
    let Some(destination) = route::destination(env, written, named)? else { return Ok(None) };
    let trust = route::trust("monitoring.tls_ca_bundle", monitoring.tls_ca_bundle.as_deref())?;
    let private = ("monitoring", monitoring.allow_private_destinations);
    let Some(reach) = route::reach_or_warn(private, &destination, offline, observer) else {
        return Ok(None);
    };
    let key = monitoring.api_key_env.as_deref().and_then(|name| (env.variable)(name));
    let key = key.filter(|_| monitoring.metrics_export == MetricsExport::Datadog);
    let route = Route {
        guard: Guard::new(reach, &trust, monitoring.timeout),
        destination,
        n_retries: N_RETRIES,
        first_pause: FIRST_PAUSE,
        headers: key.map(|key| ("DD-API-KEY".to_owned(), key)).into_iter().collect(),
    };
    Courier::start(route, env.clock.clone()).map(Some).map_err(OutboundError::Thread)
}
