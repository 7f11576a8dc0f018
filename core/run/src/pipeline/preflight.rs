//! What every stage needs, looked at before the first one trains: plugins, gates, data and the files
//! that the config names. A stage is a run and looks at all of it again in its turn; here it is found
//! out while nothing has been trained for it.

use super::error::PipelineError;
use super::plan::{PipelinePlan, StagePlan};
use super::{Request, What};
use crate::approval;
use crate::compliance::NamedFiles;
use crate::data;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::evaluators;
use crate::event::Observer;
use crate::exit::Exit;
use crate::gates;
use crate::plan::Plan;
use crate::plugins::{self, Plugins};
use crate::rewards;
use forgelm_evidence::pipeline::state::{PipelineState, StageStatus};

/// Looks at the stages that are to run. Models are not looked at: they are of hubs, or not there yet.
///
/// # Errors
/// Every problem of every stage at once; nothing was written.
pub(super) fn check(
    plan: &PipelinePlan,
    request: &Request,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    // The section is the root's for all.
    let plugins = plugins::load(&plan.root, env)?;
    let mut problems = Vec::new();
    for stage in to_run(plan, request) {
        let own = stage.plan(None)?;
        let found = [
            of_plugins(&own, &plugins),
            of_gates(&own, request.offline, env, observer),
            NamedFiles::read(&own, env).map(|_| ()),
            data::check_local(&own),
        ];
        for error in found.into_iter().filter_map(Result::err) {
            if error.exit() != Exit::Config {
                return Err(error);
            }
            problems.push(format!("stage `{}`: {}", stage.name, error.chain()));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(PipelineError::Plan(problems).into())
}

/// The stages that the state does not call done. It may be wrong about one: then its run says so.
fn to_run<'a>(plan: &'a PipelinePlan, request: &Request) -> Vec<&'a StagePlan> {
    let state = PipelineState::read(&plan.dir).ok();
    let is_done = |stage: &StagePlan| {
        let row = state.as_ref().and_then(|state| state.stages.get(stage.index));
        row.is_some_and(|row| row.name == stage.name && row.status == StageStatus::Completed)
    };
    let is_asked = |stage: &StagePlan| match &request.what {
        What::Only { stage: only, .. } => stage.name == *only,
        What::Whole | What::Rest | What::From(_) => !is_done(stage),
    };
    plan.stages.iter().filter(|stage| is_asked(stage)).collect()
}

fn of_plugins(plan: &Plan, plugins: &Plugins) -> Result<(), RunError> {
    let plugin = plugins.trainer(plan)?;
    if !plugin.needs.rollouts {
        rewards::check_none(plan)?;
    }
    plugins::build_trainer(plan, plugin)?;
    evaluators::build(plan, plugins).map(|_| ())
}

fn of_gates(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    gates::examinations(plan, offline, env, observer)?;
    approval::policy(plan)?;
    dossier::model_key(plan).map(|_| ())
}
