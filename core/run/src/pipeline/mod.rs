//! `pipeline:` several trainings, one after another, each at the model of the one before, with a state,
//! a log and a signed manifest of the whole.
//!
//! A stage is a run like any other, in a folder of its own within the pipeline's: [`crate::training`]
//! knows of pipelines no more than the id that goes into its evidence. What a stage has come to is read
//! from that evidence, verified, and never from the state alone ([`standing`]); so a pipeline that was
//! killed anywhere goes on as if it had not been.
//!
//! Read [`run`] from top to bottom; [`plan`] is what is decided before, [`stage`] one stage.

mod begin;
mod desk;
pub mod error;
pub mod plan;
mod preflight;
mod report;
mod stage;
mod standing;
mod start_model;

pub use plan::PipelinePlan;
pub use report::Ended;

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use desk::Desk;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write;
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_evidence::pipeline::state::{FinalStatus, StageStatus};

/// Which part of a pipeline is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// All of it, for the first time.
    Whole,
    /// All of it that is not done (`--resume`).
    Rest,
    /// A stage and those after it (`--resume-from`).
    From(String),
    /// One stage (`--stage`).
    Only {
        /// Its name.
        stage: String,
        /// What it begins at, where not at the stage before (`--input-model`).
        input_model: Option<String>,
    },
}

/// What was asked for besides the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which part.
    pub what: What,
    /// Although the config changed.
    pub force_resume: bool,
    /// No network.
    pub offline: bool,
    /// No point of the technical documentation may stay open.
    pub strict_compliance: bool,
}

/// Runs a pipeline, or a part of it.
///
/// # Errors
/// If it cannot begin, or its own files cannot be written. A stage that fails is no error: it is in
/// [`Ended`].
pub fn run(
    plan: &PipelinePlan,
    request: &Request,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Ended, RunError> {
    for warning in &plan.root.warnings {
        observer.observe(&Event::Warning(warning.to_string()));
    }
    begin::check(plan, request, env)?;
    preflight::check(plan, request, env, observer)?;
    let parts = desk::Parts::open(plan, request, env, observer)?;
    write::create_dir_all_durable(&plan.dir)?;
    let lock = RunLock::acquire(&plan.dir, "pipeline", env.clock.utc())?;
    if let Some(kind) = lock.weak_file_system() {
        let text =
            format!("{} is on {kind}: another machine may not see its lock", plan.dir.display());
        observer.observe(&Event::Warning(text));
    }
    for place in
        [plan.dir.clone(), plan.dir.join(COMPLIANCE_DIR), plan.dir.join(plan::START_MODELS)]
    {
        if place.is_dir() {
            write::remove_leftovers(&place)?;
        }
    }
    // Another pipeline may have been here while the key was looked for.
    let begun = begin::begin(plan, request, (env, &parts.operator), observer)?;
    let mut desk = Desk::open((plan, request), parts, begun, env, observer)?;
    desk.begin()?;
    let exit = desk.stages()?;
    desk.end(exit)
}

impl Desk<'_> {
    /// Every stage in its turn, until one has no model.
    fn stages(&mut self) -> Result<Exit, RunError> {
        for index in 0..self.plan.stages.len() {
            if self.begun.only.is_some_and(|only| only != index) {
                continue;
            }
            if self.env.stop_requested() {
                return Ok(Exit::Interrupted);
            }
            let exit = self.stage(index)?;
            if exit != Exit::Success {
                return Ok(exit);
            }
        }
        Ok(Exit::Success)
    }

    /// Says how it ended, in the state, the log and the manifest, and signs the last two.
    fn end(mut self, exit: Exit) -> Result<Ended, RunError> {
        let all_done = self.state.stages.iter().all(|stage| stage.status == StageStatus::Completed);
        self.state.final_status = match exit {
            Exit::Interrupted => FinalStatus::InProgress,
            Exit::AwaitingApproval => FinalStatus::GatedPendingApproval,
            Exit::Success if all_done => FinalStatus::Completed,
            // One stage was asked for, and others are not done.
            Exit::Success => FinalStatus::InProgress,
            _ => FinalStatus::StoppedAtStage,
        };
        let has_ended = self.state.final_status != FinalStatus::InProgress;
        if has_ended && (self.has_worked || self.state.finished_at.is_none()) {
            self.state.finished_at = Some(self.now());
        }
        self.save()?;
        self.tell_end()?;
        self.seal()?;
        Ok(Ended::of(self.plan, self.state, exit))
    }
}
