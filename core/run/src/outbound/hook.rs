//! The webhook of a run: which of its events are told, and in which words.

use super::route::{self, OutboundError};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use crate::training::Outcome;
use forgelm_artifact::Clock;
use forgelm_config::{Run, Webhook, WebhookFormat};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_outbound::courier::{Courier, Message, Route, Undelivered};
use forgelm_outbound::guard::Guard;
use forgelm_outbound::notice::{Form, Gate, Notice, Sender};
use forgelm_outbound::signed::Signer;
use std::sync::Arc;
use std::time::Duration;

/// Before the second try.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A webhook that something can be sent to.
pub(crate) struct Hook {
    courier: Courier,
    webhook: Webhook,
    run_name: String,
    run_id: Option<String>,
    alert_on_drift: bool,
    signer: Option<Arc<Signer>>,
    clock: Arc<dyn Clock>,
}

impl Hook {
    /// The webhook of a run's config, if it has one that may be reached.
    pub(super) fn open(
        plan: &Plan,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, OutboundError> {
        Self::of_run(&plan.run, offline, env, observer)
    }

    /// [`Hook::open`], where there is no plan.
    pub(crate) fn of_run(
        run: &Run,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, OutboundError> {
        let Some(webhook) = &run.webhook else { return Ok(None) };
        let written = ("webhook.url", webhook.url.as_deref());
        let named = ("webhook.url_env", webhook.url_env.as_deref());
        let Some(destination) = route::destination(env, written, named)? else { return Ok(None) };
        if destination.is_plain() && webhook.require_https {
            return Err(OutboundError::NotHttps { place: "webhook.url" });
        }
        let trust = route::trust("webhook.tls_ca_bundle", webhook.tls_ca_bundle.as_deref())?;
        let private = ("webhook", webhook.allow_private_destinations);
        let Some(reach) = route::reach_or_warn(private, &destination, offline, observer) else {
            return Ok(None);
        };
        let seconds = u64::try_from(webhook.timeout).unwrap_or(1);
        let route = Route {
            guard: Guard::new(reach, &trust, seconds),
            destination,
            n_retries: u32::try_from(webhook.retries).unwrap_or(0),
            first_pause: FIRST_PAUSE,
            headers: Vec::new(),
        };
        let courier = Courier::start(route, env.clock.clone()).map_err(OutboundError::Thread)?;
        Ok(Some(Self {
            courier,
            webhook: webhook.clone(),
            run_name: run.name(),
            run_id: None,
            alert_on_drift: run.monitoring.as_ref().is_none_or(|m| m.alert_on_drift),
            signer: None,
            clock: env.clock.clone(),
        }))
    }

    /// Takes the key of the run, if notices are to be signed; a warning where there is none.
    pub(crate) fn sign_with(&mut self, key: Option<&FoundKey>) -> Option<String> {
        if !self.webhook.sign {
            return None;
        }
        let Some(found) = key else {
            return Some("`webhook.sign` has no effect: `signing.enabled` is false".to_owned());
        };
        let key = found.signer.key.clone();
        let keyid = key.id().as_str().to_owned();
        self.signer = Some(Arc::new(Signer::new(keyid, move |bytes| {
            key.sign(bytes).map_err(|error| error.to_string())
        })));
        None
    }

    /// Whether notices are to be signed.
    pub(crate) fn signs(&self) -> bool {
        self.webhook.sign
    }

    /// Notices are of this run from now on.
    pub(crate) fn of_finished(&mut self, run_id: &str) {
        self.run_id = Some(run_id.to_owned());
    }

    /// Notices are of this pipeline, by its id.
    pub(crate) fn of_pipeline(&mut self, id: &str) {
        id.clone_into(&mut self.run_name);
        self.run_id = Some(id.to_owned());
    }

    /// Tells what is worth telling.
    pub(super) fn see(&mut self, event: &Event) {
        if let Event::Started(started) = event {
            self.run_id = Some(started.run_id.clone());
            self.tell(&Notice::Started);
        }
    }

    /// Tells how the run ended. An interruption is no end: the run goes on later.
    pub(super) fn ended(&mut self, result: &Result<Outcome, RunError>) {
        match result {
            Ok(Outcome::Completed(completed)) => {
                self.tell(&Notice::Succeeded { metrics: completed.metrics.clone() });
            }
            Ok(Outcome::Staged(completed)) => {
                let model_path = completed.final_model.display().to_string();
                self.tell(&Notice::ApprovalRequired { model_path });
            }
            Ok(Outcome::Reverted(completed)) => {
                let reasons: Vec<&str> =
                    completed.gates.iter().filter_map(|gate| gate.reason.as_deref()).collect();
                self.tell(&Notice::Reverted { reason: reasons.join("; ") });
            }
            Ok(
                Outcome::Interrupted { .. }
                | Outcome::AlreadyComplete { .. }
                | Outcome::AlreadyRejected { .. }
                | Outcome::AlreadyReverted { .. }
                | Outcome::Waiting { .. }
                | Outcome::Compared { .. },
            ) => {}
            Err(error) => self.tell(&Notice::Failed { reason: error.chain() }),
        }
    }

    /// Sends a notice, if the config lets it through.
    pub(crate) fn tell(&self, notice: &Notice) {
        let is_wanted = match notice.gate() {
            Gate::Start => self.webhook.notify_on_start,
            Gate::Success => self.webhook.notify_on_success,
            Gate::Failure => self.webhook.notify_on_failure,
            Gate::Drift => self.alert_on_drift,
        };
        if !is_wanted {
            return;
        }
        let sent_at = self.clock.utc().to_string();
        let sender =
            Sender { run_name: &self.run_name, run_id: self.run_id.as_deref(), sent_at: &sent_at };
        let form = match self.webhook.format {
            WebhookFormat::Generic => Form::Generic,
            WebhookFormat::Slack => Form::Slack,
            WebhookFormat::Teams => Form::Teams,
        };
        self.courier.send(Message {
            label: notice.event().to_owned(),
            content_type: "application/json",
            body: notice.body(&sender, form),
            signer: self.signer.clone(),
        });
    }

    /// What did not arrive since this was last asked.
    pub(crate) fn failures(&self) -> Vec<Undelivered> {
        self.courier.failures()
    }

    /// Waits for what is on its way, `at_most` so long; what did not arrive.
    pub(crate) fn finish(self, at_most: Duration) -> Vec<Undelivered> {
        self.courier.finish(at_most)
    }
}
