//! The pipeline's own papers while it runs: state, log, manifest, signatures, notices.
//!
//! The order of writes: that a stage has passed stands in the state and the manifest before it stands in
//! the log, and what takes that back (it begins again, it failed) the other way round. So a pipeline that
//! is killed between them has no log that its manifest contradicts; whoever continues it adds the line
//! that is missing ([`Desk::adopt`]).

use super::Request;
use super::begin::Begun;
use super::plan::PipelinePlan;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::outbound::{self, END_WAIT, Hook, STOP_WAIT, TimeStamps};
use crate::retention::enforce;
use forgelm_config::resolved_json;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::documents::evidence::Builder;
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_evidence::pipeline::Replay;
use forgelm_evidence::pipeline::state::{FinalStatus, PipelineState};
use forgelm_evidence::pipeline::write::ManifestFacts;
use forgelm_outbound::notice::Notice;
use serde_json::{Map, Value};

/// What is found out before anything is written.
pub(super) struct Parts {
    pub(super) operator: String,
    pub(super) key: Option<FoundKey>,
    stamps: Option<TimeStamps>,
    hook: Option<Hook>,
}

impl Parts {
    /// Who runs this, with which key, and who is told.
    pub(super) fn open(
        plan: &PipelinePlan,
        request: &Request,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let run = &plan.root.run;
        let operator = dossier::operator(env)?;
        let stamps = TimeStamps::open(run, request.offline, env, observer)?;
        let key = dossier::signing_key(&plan.root, env, observer)?;
        let offline = request.offline || run.model.offline || env.offline;
        let mut hook = Hook::of_run(run, offline, env, observer)?;
        if let Some(warning) = hook.as_mut().and_then(|hook| hook.sign_with(key.as_ref())) {
            observer.observe(&Event::Warning(warning));
        }
        Ok(Self { operator, key, stamps, hook })
    }
}

/// A pipeline at work.
pub(super) struct Desk<'a> {
    pub(super) plan: &'a PipelinePlan,
    pub(super) request: &'a Request,
    pub(super) env: &'a Environment,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) parts: Parts,
    pub(super) begun: Begun,
    pub(super) state: PipelineState,
    /// Whether a stage did anything since this program began.
    pub(super) has_worked: bool,
    audit: Option<AuditLog>,
    builder: Builder,
    compliance: Option<Map<String, Value>>,
    risk_assessment: Option<Map<String, Value>>,
}

impl<'a> Desk<'a> {
    pub(super) fn open(
        (plan, request): (&'a PipelinePlan, &'a Request),
        mut parts: Parts,
        begun: Begun,
        env: &'a Environment,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, RunError> {
        let mut config = resolved_json(&plan.root.run);
        let mut section = |name: &str| match config[name].take() {
            Value::Object(members) => Some(members),
            _ => None,
        };
        if let Some(hook) = &mut parts.hook {
            hook.of_pipeline(&begun.state.pipeline_run_id);
        }
        Ok(Self {
            plan,
            request,
            env,
            observer,
            parts,
            state: begun.state.clone(),
            begun,
            has_worked: false,
            audit: None,
            builder: dossier::builder(),
            compliance: section("compliance"),
            risk_assessment: section("risk_assessment"),
        })
    }

    /// The present, in whole seconds.
    pub(super) fn now(&self) -> String {
        self.env.clock.utc().to_text_seconds()
    }

    fn facts(&self) -> ManifestFacts<'_> {
        ManifestFacts {
            operator: &self.parts.operator,
            builder: &self.builder,
            compliance: self.compliance.as_ref(),
            risk_assessment: self.risk_assessment.as_ref(),
            signer: self.parts.key.as_ref().map(|found| found.signer.as_ref()),
        }
    }

    /// Writes the state, and the manifest of it.
    pub(super) fn save(&mut self) -> Result<(), RunError> {
        self.state.write(&self.plan.dir)?;
        Ok(self.facts().write(&self.plan.dir, &self.state, self.env.clock.utc())?)
    }

    /// Adds a line to the pipeline's log.
    pub(super) fn record(&mut self, event: &AuditEvent) -> Result<(), RunError> {
        if let Some(audit) = &mut self.audit {
            audit.append(event)?;
        }
        Ok(())
    }

    pub(super) fn tell(&self, notice: &Notice) {
        if let Some(hook) = &self.parts.hook {
            hook.tell(notice);
        }
    }

    pub(super) fn notice(&mut self, text: String) {
        self.observer.observe(&Event::Notice(text));
    }

    pub(super) fn warn(&mut self, text: String) {
        self.observer.observe(&Event::Warning(text));
    }

    /// Whether the log says that a stage has passed, and nothing since that it began again.
    pub(super) fn log_has_passed(&self, stage: &str) -> bool {
        Replay::of_log(&self.plan.dir, &self.state.pipeline_run_id).live.contains_key(stage)
    }

    /// The first words. A resumed pipeline is not begun again; one that was killed before its first words
    /// says them now.
    pub(super) fn begin(&mut self) -> Result<(), RunError> {
        let dir = &self.plan.dir;
        if self.begun.is_new {
            // A log without a state would be of a pipeline that nobody can continue.
            self.state.write(dir)?;
        }
        let last_keyid = dossier::last_keyid(dir);
        let identity = AuditIdentity {
            run_id: self.state.pipeline_run_id.clone(),
            operator: self.parts.operator.clone(),
            secret: self.env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: self.env.allow_audit_reroot,
        };
        let mut audit = AuditLog::open(dir, identity, self.env.clock.clone())?;
        let key = self.parts.key.as_ref();
        dossier::begin_audit(&self.plan.root.run, (&mut audit, last_keyid), key)?;
        let is_told = !self.begun.is_new && has_started(dir, &self.state.pipeline_run_id);
        let root = &self.plan.root.run;
        let kept = enforce::before_pipeline(root, dir, &mut audit, self.env, self.observer);
        self.audit = Some(audit);
        if let Err(error) = kept {
            self.seal()?;
            return Err(error);
        }
        let pipeline_run_id = self.state.pipeline_run_id.clone();
        if !is_told {
            self.record(&AuditEvent::PipelineStarted {
                pipeline_run_id: pipeline_run_id.clone(),
                config_hash: self.state.pipeline_config_hash.clone(),
                stage_count: self.state.stages.len() as u64,
                stage_names: self.state.stages.iter().map(|row| row.name.clone()).collect(),
            })?;
            self.tell(&Notice::PipelineStarted { stage_count: self.state.stages.len() });
        }
        if let Some(forced) = self.begun.forced.clone() {
            self.warn("forced although the config changed: both are recorded".to_owned());
            self.record(&AuditEvent::PipelineForceResume {
                pipeline_run_id,
                old_config_hash: forced.old_config_hash,
                new_config_hash: forced.new_config_hash,
            })?;
        }
        let n = self.state.stages.len();
        let id = self.state.pipeline_run_id.clone();
        self.notice(format!("pipeline {id} of {n} stages in {}", self.plan.dir.display()));
        Ok(())
    }

    /// Nothing is over any more: what says so goes before anything is done.
    pub(super) fn reopen(&mut self) {
        self.has_worked = true;
        self.state.final_status = FinalStatus::InProgress;
        self.state.stopped_at = None;
        self.state.finished_at = None;
    }

    /// The last words, for a pipeline that has ended; then whatever was told and did not arrive.
    pub(super) fn tell_end(&mut self) -> Result<(), RunError> {
        let final_status = match self.state.final_status {
            FinalStatus::Completed => Some("completed"),
            FinalStatus::StoppedAtStage => Some("stopped_at_stage"),
            FinalStatus::InProgress | FinalStatus::GatedPendingApproval => None,
        };
        let id = self.state.pipeline_run_id.clone();
        let is_said = !self.has_worked && Replay::of_log(&self.plan.dir, &id).has_ended;
        if let Some(final_status) = final_status.filter(|_| !is_said) {
            let stopped_at = self.state.stopped_at.clone();
            self.record(&AuditEvent::PipelineEnded {
                pipeline_run_id: id,
                final_status: final_status.to_owned(),
                stopped_at: stopped_at.clone(),
            })?;
            let is_completed = self.state.final_status == FinalStatus::Completed;
            self.tell(&Notice::PipelineEnded { is_completed, stopped_at });
        }
        let at_most = if self.env.stop_requested() { STOP_WAIT } else { END_WAIT };
        let failures = self.parts.hook.take().map(|hook| hook.finish(at_most)).unwrap_or_default();
        for failure in &failures {
            self.warn(outbound::undelivered(failure));
            self.record(&outbound::undelivered_event(failure))?;
        }
        Ok(())
    }

    /// Signs the head of the log.
    pub(super) fn seal(&mut self) -> Result<(), RunError> {
        let stamping = self.parts.stamps.as_ref().map(TimeStamps::stamping);
        let (dir, now) = (&self.plan.dir, self.env.clock.utc());
        let unstamped = self.facts().seal(dir, &self.state, now, stamping.as_ref())?;
        outbound::tell_unstamped(&unstamped, self.observer);
        Ok(())
    }
}

/// Whether the log has the first words of a pipeline.
fn has_started(dir: &std::path::Path, run_id: &str) -> bool {
    let log = dir.join(forgelm_evidence::audit::LOG_FILE);
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|line| {
        line["event"] == "pipeline.started" && line["pipeline_run_id"].as_str() == Some(run_id)
    })
}
