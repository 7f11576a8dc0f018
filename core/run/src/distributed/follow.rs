//! A process that does what the leader does, and writes nothing but its shards of checkpoints.

use super::{Processes, Said};
use crate::data;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use crate::kernels::caught;
use crate::model;
use crate::plan::Plan;
use crate::plugins::{self, Plugins};
use crate::rewards::RewardModel;
use crate::settings;
use crate::training::tokenized::TokenizedData;
use crate::training::{ReferenceSource, Request, identity, new_trainable, prepare_references};
use forgelm_kernels_api::Failure;
use forgelm_model::{Keep, LoadError};
use forgelm_train::checkpoint;
use forgelm_train::feed::Feed;
use forgelm_train::optimizer::Optimizer;
use forgelm_train::session::{Parts, Session, StepError};
use forgelm_train::state::State;

/// Takes part in a run until its leader lets this process go; the exit code that the run has.
///
/// # Errors
/// Everything in [`RunError`] that happens on this process, with its rank.
pub fn follow(
    plan: &Plan,
    request: &Request,
    plugins: &mut Plugins,
    env: &Environment,
    processes: &Processes,
) -> Result<Exit, RunError> {
    let rank = processes.group.rank();
    let followed = caught(|| run(plan, request, plugins, env, processes));
    followed.map_err(|source| RunError::OnRank { rank, source: Box::new(source) })
}

fn run(
    plan: &Plan,
    request: &Request,
    plugins: &Plugins,
    env: &Environment,
    processes: &Processes,
) -> Result<Exit, RunError> {
    let (template_now, from) = match processes.group.listen_for()? {
        Said::Start { template_now, from } => (template_now, from),
        Said::End { exit_code } => return Ok(Exit::of_code(exit_code)),
        other => return Err(processes.nonsense(&other).into()),
    };
    let observer = &mut Silent;
    let plugin = plugins.trainer(plan)?;
    let needs = plugin.needs;
    let (trainer, used) = plugins::build_trainer(plan, plugin)?;
    let sources = data::find(plan, request.offline, env, observer)?;
    let model_request = model::request_of(plan, request.offline);
    let found = model::find(&model_request, env, observer)?;
    let method = (plan, plugins);
    let reward_model = RewardModel::find(method, request.offline, template_now, env, observer)?;
    let models = (&found, reward_model);
    let data = TokenizedData::new(method, &sources, models, template_now, env, observer)?;
    let mut adapter = new_trainable(plan, &found)?;
    let ops = plugins.kernels()?;
    let compute = model::compute(model_request.compute, ops.as_ref());
    let options = settings::load_options(&plan.run, compute);
    let mut loaded = model::load_with(&found, ops, options, processes.holders())?;
    let store = found.open.store();
    let optimizer = Optimizer::new(settings::optimizer(&plan.run), &adapter.slices())?;
    processes.share_out(&mut adapter, &optimizer);
    loaded.decoder.begin_alone(&mut adapter, store).map_err(LoadError::from)?;
    let identity = identity(plan, env, &data, &loaded, template_now);
    let used: Vec<_> = std::iter::once(used).chain(data.rewards().iter().cloned()).collect();
    if let Some(exit) = processes.expect(&Said::Compare, &loaded.decoder)? {
        return Ok(exit);
    }
    match processes.agree(&identity, &used, env) {
        // The leader tells it, and lets all go.
        Ok(_) | Err(RunError::RanksDiffer(_)) => {}
        Err(error) => return Err(error),
    }
    if let Some(exit) = processes.expect(&Said::Ready, &loaded.decoder)? {
        return Ok(exit);
    }
    let feed = data.feed(&found.tokenizer);
    let references = match needs.reference {
        true => {
            let source = ReferenceSource { loaded: &loaded, found: &found, env };
            Some(prepare_references(source, &feed, (&adapter, &identity), &mut |_, _| true)?)
        }
        false => None,
    };
    loaded.decoder.accompany()?;
    let references = references.map(|found| found.references);
    let (adapter, optimizer, state) = match &from {
        None => (adapter, optimizer, State::new(data.plan.n_steps(), identity)),
        Some(path) => {
            let loaded = checkpoint::load(path, &adapter, optimizer)?;
            let state = State { max_steps: data.plan.n_steps(), identity, ..loaded.state };
            (loaded.adapter, loaded.optimizer, state)
        }
    };
    let mut session = Session::without_buffers(Parts {
        decoder: &loaded.decoder,
        trainer: trainer.as_ref(),
        feed: Feed { references: references.as_ref(), ..feed },
        keep: Keep::Everything,
        settings: settings::training(&plan.run, data.plan.n_steps()),
        adapter,
        optimizer,
        state,
        team: Some(processes.team()),
    })?;
    let exit_code = session.follow().map_err(|error| match error {
        StepError::Data(error) => error.into(),
        StepError::Trainer(error) => error.into(),
        StepError::Collective(error) => error.into(),
        StepError::Restore(error) => error.into(),
        // Which the leader tells.
        StepError::NotFinite { .. } => RunError::Failed(Failure::new(error.to_string())),
    })?;
    Ok(Exit::of_code(exit_code))
}

/// What is worth telling is told by the leader.
struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event) {}
}
