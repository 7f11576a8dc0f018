//! The program's side: a library in a worker, as offers like those of any other library.

use super::WorkerProgram;
use super::instance::{Instance, Merger};
use super::process::{Shared, Worker};
use super::wire::{Answer, Ask, Described, KindOf, Loaded};
use crate::Library;
use crate::border::Caller;
use crate::conformance::Outcome;
use crate::error::{LibraryError, Problem};
use crate::host::HostServices;
use crate::sealed::LibraryFile;
use crate::trainer::{kept_name, records_of};
use forgelm_plugin::{
    Collectives, Evaluators, Kind, MergeMethods, Offers, Origin, Plugin, Quantizers, Rewards,
    Trainers,
};
use forgelm_sdk::evaluator::Evaluator;
use forgelm_sdk::merge_method::{self, MergeMethod, Pass, Scope};
use forgelm_sdk::options::to_json;
use forgelm_sdk::quantizer::Quantizer;
use forgelm_sdk::reward::Reward;
use forgelm_sdk::trainer::{self, Trainer};
use forgelm_sdk::{OptionValue, OptionsError};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex, PoisonError};

/// Starts a worker and loads a library in it.
pub(crate) fn load(
    file: &LibraryFile,
    program: &WorkerProgram,
    services: Arc<HostServices>,
) -> Result<Library, LibraryError> {
    let (worker, loaded) = start(file, program, services)?;
    Ok(library(file, loaded, Arc::new(Mutex::new(worker))))
}

/// A worker, and what the library in it says.
pub(super) fn start(
    file: &LibraryFile,
    program: &WorkerProgram,
    services: Arc<HostServices>,
) -> Result<(Worker, Loaded), LibraryError> {
    let wrong = |problem| LibraryError { path: file.path.clone(), problem };
    let mut worker = Worker::start(program, services).map_err(|e| wrong(Problem::NoWorker(e)))?;
    let path = file.path.as_os_str().as_bytes().to_owned();
    let answer = worker.ask(&Ask::Load { path, sha256: file.sha256.clone() });
    let problem = if worker.is_alive() { Problem::InWorker } else { Problem::Died };
    let Answer::Loaded(loaded) = answer.map_err(|why| wrong(problem(why)))? else {
        return Err(wrong(Problem::InWorker(unexpected())));
    };
    Ok((worker, *loaded))
}

pub(super) fn unexpected() -> String {
    "its worker gave an answer to another question".to_owned()
}

fn library(file: &LibraryFile, loaded: Loaded, worker: Shared) -> Library {
    let origin = Arc::new(Origin {
        library: loaded.library,
        version: loaded.version,
        path: file.path.clone(),
        sha256: file.sha256.clone(),
        is_isolated: true,
        signature: file.signature.clone(),
    });
    let remote = |index| Remote { worker: Arc::clone(&worker), index };
    let mut offers = Offers::default();
    for (index, (described, needs)) in loaded.trainers.into_iter().enumerate() {
        let needs = trainer::Needs {
            // the worker's loader has checked the number
            records: records_of(needs.records).unwrap_or(trainer::Records::Text),
            reference: needs.reference,
            rollouts: needs.rollouts,
            prompts: needs.prompts,
            dropout: needs.dropout,
        };
        let remote = remote(index);
        offers.trainers.push(plugin(described, needs, &origin, move |caller| {
            let build: Arc<<Trainers as Kind>::Build> =
                Arc::new(move |options: &[(&str, OptionValue)]| {
                    let (instance, _) = remote.create(KindOf::Trainer, options, &[], &caller)?;
                    Ok(Box::new(instance) as Box<dyn Trainer>)
                });
            build
        }));
    }
    for (index, (described, needs)) in loaded.merge_methods.into_iter().enumerate() {
        let scope = if needs.is_whole_tensor { Scope::Tensor } else { Scope::Elements };
        let (n_inputs_min, n_inputs_max) = (needs.n_inputs_min, needs.n_inputs_max);
        let needs = merge_method::Needs { scope, n_inputs_min, n_inputs_max };
        let remote = remote(index);
        offers.merge_methods.push(plugin(described, needs, &origin, move |caller| {
            let build: Arc<<MergeMethods as Kind>::Build> =
                Arc::new(move |options: &[(&str, OptionValue)], weights: &[f64]| {
                    let created = remote.create(KindOf::MergeMethod, options, weights, &caller)?;
                    let (instance, (reads_base, passes)) = created;
                    Ok(Box::new(Merger { instance, reads_base, passes }) as Box<dyn MergeMethod>)
                });
            build
        }));
    }
    for (index, described) in loaded.quantizers.into_iter().enumerate() {
        let remote = remote(index);
        offers.quantizers.push(plugin(described, (), &origin, move |caller| {
            let build: Arc<<Quantizers as Kind>::Build> =
                Arc::new(move |options: &[(&str, OptionValue)]| {
                    let (instance, _) = remote.create(KindOf::Quantizer, options, &[], &caller)?;
                    Ok(Box::new(instance) as Box<dyn Quantizer>)
                });
            build
        }));
    }
    for (index, described) in loaded.rewards.into_iter().enumerate() {
        let remote = remote(index);
        offers.rewards.push(plugin(described, (), &origin, move |caller| {
            let build: Arc<<Rewards as Kind>::Build> =
                Arc::new(move |options: &[(&str, OptionValue)]| {
                    let (instance, _) = remote.create(KindOf::Reward, options, &[], &caller)?;
                    Ok(Box::new(instance) as Box<dyn Reward>)
                });
            build
        }));
    }
    for (index, described) in loaded.evaluators.into_iter().enumerate() {
        let remote = remote(index);
        offers.evaluators.push(plugin(described, (), &origin, move |caller| {
            let build: Arc<<Evaluators as Kind>::Build> =
                Arc::new(move |options: &[(&str, OptionValue)]| {
                    let (instance, _) = remote.create(KindOf::Evaluator, options, &[], &caller)?;
                    Ok(Box::new(instance) as Box<dyn Evaluator>)
                });
            build
        }));
    }
    for described in loaded.collectives {
        offers.collectives.push(plugin(described, (), &origin, |caller| {
            let build: Arc<<Collectives as Kind>::Build> =
                Arc::new(move |_: &[(&str, OptionValue)]| Err(no_way_from_here(&caller)));
            build
        }));
    }
    let worker = Some(InWorker(worker));
    Library { origin, abi: loaded.abi, offers, notes: loaded.notes, worker }
}

/// The process of a library that is in one of its own, for what only that process can find out.
pub struct InWorker(Shared);

impl fmt::Debug for InWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InWorker").finish_non_exhaustive()
    }
}

impl InWorker {
    /// What the process finds out about a collective, which joins it, and nothing else.
    pub(crate) fn try_collective(
        &self,
        index: usize,
    ) -> Result<Vec<(&'static str, Outcome)>, String> {
        let mut worker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match worker.ask(&Ask::TryCollective { index })? {
            Answer::Tried(found) => {
                let kept = |(property, outcome): (String, Outcome)| (kept_name(&property), outcome);
                Ok(found.into_iter().map(kept).collect())
            }
            _ => Err(unexpected()),
        }
    }
}

/// What a collective joins is the process that it is in, and that would not be the one that trains.
fn no_way_from_here(caller: &Caller) -> OptionsError {
    let what = "it joins the process that trains, and this library is kept in a process of its own\n  \
                hint: sign it (`forgelm plugin sign`) with a key that you trust, or \
                `plugins.isolation: in_process`";
    OptionsError::Refused { message: caller.failed(what).message }
}

fn plugin<K: Kind>(
    described: Described,
    needs: K::Needs,
    origin: &Arc<Origin>,
    build: impl FnOnce(Caller) -> Arc<K::Build>,
) -> Plugin<K> {
    let name = kept_name(&described.name);
    Plugin {
        name,
        summary: kept_name(&described.summary),
        source: kept_name(&described.source),
        needs,
        build: build(Caller::new::<K>(name, origin)),
        origin: Arc::clone(origin),
    }
}

/// One plugin of the library in a worker.
struct Remote {
    worker: Shared,
    index: usize,
}

type Passes = (bool, Vec<Pass>);

/// Sums or facts of a pass, at most.
const PASS_MAX: usize = 1 << 24;

impl Remote {
    fn create(
        &self,
        kind: KindOf,
        options: &[(&str, OptionValue)],
        weights: &[f64],
        caller: &Caller,
    ) -> Result<(Instance, Passes), OptionsError> {
        let refused = |message| OptionsError::Refused { message };
        let options = to_json(options)?;
        let weights = weights.iter().map(|weight| weight.to_bits()).collect();
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alive = worker.is_alive();
        let answer = worker.ask(&Ask::Create { kind, index: self.index, options, weights });
        // What the plugin says about an option stands alone; a death is told with its name.
        let has_died = is_alive && !worker.is_alive();
        drop(worker);
        match answer {
            Ok(Answer::Created { passes, .. })
                if passes.iter().any(|&(sums, facts)| sums.max(facts) > PASS_MAX) =>
            {
                let what = format!("a pass has more than {PASS_MAX} sums or facts");
                Err(refused(caller.failed(&what).message))
            }
            Ok(Answer::Created { instance: number, reads_base, passes }) => {
                let worker = Arc::clone(&self.worker);
                let instance = Instance { worker, kind, number, caller: caller.clone() };
                let pass = |(n_sums, n_facts)| Pass { n_sums, n_facts };
                Ok((instance, (reads_base, passes.into_iter().map(pass).collect())))
            }
            Ok(_) => Err(refused(caller.failed(&unexpected()).message)),
            Err(why) if has_died || !is_alive => {
                Err(OptionsError::Died { message: caller.failed(&why).message })
            }
            Err(why) => Err(refused(why)),
        }
    }
}
