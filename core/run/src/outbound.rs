//! Who else is told what happens in a run: a webhook, a monitor and a tracker. Observers more beside the
//! caller's.
//!
//! **Invariants:** whoever is told here ends no run and holds up no step (messages wait in a queue of
//! their own, and the end waits for [`END_WAIT`] at most); no file of the run and no line of output
//! has an address, only its scheme and host.
//!
//! Start reading at [`Told`].

mod api;
mod decided;
mod hook;
mod monitor;
mod route;
mod timestamp;
mod tracker;

pub(crate) use api::{ApiSettings, api_contact, open_api};
pub use decided::tell_decision;
pub use route::OutboundError;
pub(crate) use timestamp::{TimeStamps, tell_unstamped};

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use crate::training::Outcome;
use forgelm_artifact::Clock;
use forgelm_config::{MetricsExport, Monitoring, Run};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_outbound::courier::Undelivered;
pub(crate) use hook::Hook;
use monitor::Monitor;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tracker::Tracker;

/// How long the end of a run waits for what is still on its way.
pub(crate) const END_WAIT: Duration = Duration::from_secs(30);
/// And where it was asked to stop: whoever asked waits too.
pub(crate) const STOP_WAIT: Duration = Duration::from_secs(3);

/// A run's observer, and whoever else is told.
pub(crate) struct Told<'a> {
    plan: &'a Plan,
    env: &'a Environment,
    observer: &'a mut dyn Observer,
    hook: Option<Hook>,
    monitor: Option<Monitor>,
    tracker: Option<Tracker>,
    /// The run, once its audit log is there.
    run_id: Option<String>,
    /// Notices that did not arrive.
    failures: Vec<Undelivered>,
}

impl<'a> Told<'a> {
    /// Finds out who is to be told.
    ///
    /// # Errors
    /// If an address, or the file of certificates, cannot be used.
    pub(crate) fn open(
        plan: &'a Plan,
        offline: bool,
        env: &'a Environment,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, RunError> {
        let offline = offline || plan.run.model.offline || env.offline;
        let hook = Hook::open(plan, offline, env, observer)?;
        let monitor = Monitor::open(plan, offline, env, observer)?;
        let tracker = Tracker::open(plan, offline, env, observer)?;
        let (run_id, failures) = (None, Vec::new());
        Ok(Self { plan, env, observer, hook, monitor, tracker, run_id, failures })
    }

    /// Lets the run's key sign what is to be signed.
    pub(crate) fn sign_with(&mut self, key: Option<&FoundKey>) {
        if let Some(hook) = &mut self.hook
            && let Some(warning) = hook.sign_with(key)
        {
            self.observer.observe(&Event::Warning(warning));
        }
    }

    /// Tells how the run ended, waits until everyone knows or cannot be told, and records who was not.
    pub(crate) fn end(mut self, result: &Result<Outcome, RunError>) {
        let start = self.env.clock.monotonic();
        let (mut hook, mut monitor) = (self.hook.take(), self.monitor.take());
        if let Some(hook) = &mut hook {
            hook.ended(result);
        }
        if let Some(monitor) = &mut monitor {
            let warning = monitor.ended(result);
            self.warn(warning);
        }
        let mut tracker = self.tracker.take();
        if let Some(tracker) = &mut tracker {
            let warning = tracker.ended(result);
            self.warn(warning);
        }
        let at_most = if self.env.stop_requested() { STOP_WAIT } else { END_WAIT };
        let failures = hook.map(|hook| hook.finish(at_most)).unwrap_or_default();
        self.failed(failures);
        // All had the time until now; a further wait is no longer than a second.
        let left = |clock: &dyn Clock| {
            let waited = clock.monotonic().saturating_sub(start);
            at_most.saturating_sub(waited).max(Duration::from_secs(1))
        };
        if let Some(monitor) = monitor {
            let told = monitor.finish(left(self.env.clock.as_ref()));
            self.warn(told);
        }
        if let Some(tracker) = tracker {
            let (notice, told) = tracker.finish(left(self.env.clock.as_ref()));
            self.notice(notice);
            self.warn(told);
        }
        if let (Some(run_id), false) = (self.run_id.take(), self.failures.is_empty())
            && let Err(error) = self.record(run_id)
        {
            let text = format!("notices that did not arrive are not recorded: {}", error.chain());
            self.observer.observe(&Event::Warning(text));
        }
    }

    fn warn(&mut self, warnings: impl IntoIterator<Item = String>) {
        for text in warnings {
            self.observer.observe(&Event::Warning(text));
        }
    }

    fn notice(&mut self, text: Option<String>) {
        if let Some(text) = text {
            self.observer.observe(&Event::Notice(text));
        }
    }

    fn failed(&mut self, failures: Vec<Undelivered>) {
        self.warn(failures.iter().map(undelivered));
        self.failures.extend(failures);
    }

    /// Lines in the audit log; after the end of a run it may grow.
    fn record(&self, run_id: String) -> Result<(), RunError> {
        let identity = AuditIdentity {
            run_id,
            operator: dossier::operator(self.env)?,
            secret: self.env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: false,
        };
        let mut audit = AuditLog::open(self.plan.output.root(), identity, self.env.clock.clone())?;
        for failure in &self.failures {
            audit.append(&undelivered_event(failure))?;
        }
        Ok(())
    }
}

/// What a person reads of a notice that did not arrive.
pub(crate) fn undelivered(failure: &Undelivered) -> String {
    let Undelivered { label, destination, n_tries, reason } = failure;
    let tries = match n_tries {
        0 => String::new(),
        1 => " after 1 try".to_owned(),
        n => format!(" after {n} tries"),
    };
    format!("webhook {destination}: `{label}` was not delivered{tries}: {reason}")
}

/// The same in the audit log.
pub(crate) fn undelivered_event(failure: &Undelivered) -> AuditEvent {
    AuditEvent::WebhookDeliveryFailed {
        notice: failure.label.clone(),
        destination: failure.destination.clone(),
        tries: u64::from(failure.n_tries),
        reason: failure.reason.clone(),
    }
}

impl Observer for Told<'_> {
    fn observe(&mut self, event: &Event) {
        self.observer.observe(event);
        if let Event::Started(started) = event {
            self.run_id = Some(started.run_id.clone());
        }
        if let Some(hook) = &mut self.hook {
            hook.see(event);
            let failures = hook.failures();
            self.failed(failures);
        }
        if let Some(monitor) = &mut self.monitor {
            let warnings = [monitor.see(event), monitor.failures()];
            self.warn(warnings.into_iter().flatten());
        }
        if let Some(tracker) = &mut self.tracker {
            let warning = tracker.see(event);
            let (notice, problem) = tracker.news();
            self.warn([warning, problem].into_iter().flatten());
            self.notice(notice);
        }
    }
}

/// The `webhook` section for a document: without its address.
pub(crate) fn without_address(mut section: Map<String, Value>) -> Map<String, Value> {
    section.shift_remove("url");
    section
}

/// The `monitoring` section for a document, where it is on: of the endpoint no more than scheme and
/// host, since such addresses carry tokens, or the name of its variable.
pub(crate) fn monitoring_record(run: &Run) -> Option<Map<String, Value>> {
    let monitoring = run.monitoring.as_ref().filter(|monitoring| monitoring.enabled)?;
    let endpoint = match &monitoring.endpoint_env {
        Some(name) => format!("${name}"),
        None => route::shown(Some(&monitoring.endpoint), None).unwrap_or_default(),
    };
    let record = json!({
        "endpoint": endpoint,
        "metrics_export": monitoring.metrics_export.as_str(),
        "alert_on_drift": monitoring.alert_on_drift,
        "check_interval_hours": monitoring.check_interval_hours,
        "confidence": monitoring.confidence,
    });
    match record {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

/// Whom a run tells, for its plan: scheme and host alone.
pub(crate) fn contacts(run: &Run) -> Vec<String> {
    let webhook = run.webhook.as_ref().and_then(|webhook| {
        let reached = route::reach(run.model.offline, webhook.allow_private_destinations)?;
        let who = route::shown(webhook.url.as_deref(), webhook.url_env.as_deref())?;
        Some(format!("{who}, for notices{}", route::limit(reached)))
    });
    let monitoring = run.monitoring.as_ref().filter(|monitoring| monitoring.enabled);
    let monitoring = monitoring.filter(|m| m.metrics_export != MetricsExport::None);
    let monitoring = monitoring.and_then(|monitoring| {
        let reached = route::reach(run.model.offline, monitoring.allow_private_destinations)?;
        let endpoint = Some(monitoring.endpoint.as_str());
        let who = route::shown(endpoint, monitoring.endpoint_env.as_deref())?;
        Some(format!("{who}, for metrics{}", route::limit(reached)))
    });
    let signing = run.signing();
    let authority = signing.timestamp_url.as_deref();
    let authority = authority.filter(|_| signing.enabled && !run.model.offline);
    let authority = route::shown(authority, None).map(|who| format!("{who}, for time stamps"));
    let tracker = tracker::contacts(run);
    webhook.into_iter().chain(monitoring).chain(authority).chain(tracker).collect()
}

/// What a run writes for monitors and trackers.
pub(crate) fn writes(run: &Run) -> impl Iterator<Item = &'static str> {
    let monitoring = run.monitoring.as_ref().filter(|monitoring| monitoring.enabled);
    let is_text = |m: &Monitoring| m.metrics_export == MetricsExport::Prometheus;
    let text = monitoring.filter(|m| is_text(m)).map(|_| monitor::TEXT_FILE);
    text.into_iter().chain(tracker::writes(run))
}
