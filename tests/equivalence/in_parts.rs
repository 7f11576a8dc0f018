//! Every weight trains, and each process has a part of them: the bits of a run of one process that has
//! them whole.

use crate::devices::{opened, with_link};
use crate::ranks::Shared;
use crate::shards::peft;
use crate::tiny::{Objective, Run, of_answers, optimizer, plan_settings, sft, tiny_open};
use forgelm_artifact::Disk;
use forgelm_collective::{Group, Settings, threads};
use forgelm_data::PlanSettings;
use forgelm_kernels_api::Ops;
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::{Cuda, Device};
use forgelm_kernels_emulator::{self as emulator, Nccl};
use forgelm_model::{Keep, Selection, Trainable};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::checkpoint::{self, View, merge};
use forgelm_train::optimizer::{GaloreSettings, Kind, OptimizerSettings, ProjectionType};
use forgelm_train::session::{
    EvaluationReport, Session, StepReport, Team, dismiss, link_devices, share_out,
};
use forgelm_train::state::{Identity, State};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
struct Job<'a> {
    model: &'a str,
    objective: Objective<'a>,
    plan: PlanSettings,
    optimizer: OptimizerSettings,
    n_steps: usize,
    /// A device for each rank, linked with the others; the processor computes without.
    devices: &'a [Arc<Device>],
}

impl<'a> Job<'a> {
    fn of(model: &'a str, objective: Objective<'a>, plan: PlanSettings) -> Self {
        let optimizer = OptimizerSettings::adamw(0.01);
        Self { model, objective, plan, optimizer, n_steps: 2, devices: &[] }
    }

    /// What computes on a rank.
    fn ops(&self, rank: usize) -> Arc<dyn Ops> {
        match self.devices.get(rank) {
            Some(device) => Arc::new(Cuda::new(Arc::clone(device), 1)),
            None => Arc::new(Cpu::new(1)),
        }
    }
}

/// Everything that a run leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    params: Vec<f32>,
    /// Of the weights, after each step and at the end.
    digests: Vec<String>,
    optimizer: Vec<u8>,
    steps: Vec<StepReport>,
    evaluation: Option<EvaluationReport>,
}

/// What the leader does with its session.
type Work<'w, T> = &'w (dyn Fn(&mut Session<'_>) -> T + Sync);

/// A run on so many ranks, each a thread, from the base or a checkpoint; what the leader's work gives.
fn on_ranks<T: Send>(
    job: &Job<'_>,
    (n_ranks, shared): (usize, Shared),
    from: Option<&Path>,
    work: Work<'_, T>,
) -> T {
    let rank = |thread| {
        let settings = Settings::with_deadline(Duration::from_secs(60));
        let group = Group::open(move || Ok(Box::new(thread)), settings).expect("it opens");
        let holders = shared.holders(&group).filter(|_| n_ranks > 1);
        let is_in_parts = holders.is_some();
        let ops = job.ops(group.rank());
        let linked =
            link_devices(&group.members(), Some(ops.as_ref()), "here", Duration::from_secs(60));
        let linked = linked.expect("they tell each other");
        assert_eq!(linked.link().is_some(), !job.devices.is_empty() && n_ranks > 1);
        let holders = with_link(holders, ops.as_ref(), linked.link().is_some());
        let (open, mut decoder) = tiny_open(job.model, ops, holders);
        let stream = Stream::new(7, Purpose::LoraInit);
        let mut trainable = Trainable::new(Selection::Everything, decoder.config(), &stream)
            .expect("every weight trains");
        let mut optimizer = optimizer(&trainable, job.optimizer.clone());
        if is_in_parts {
            share_out(&mut trainable, &optimizer, &group);
            let n_own = trainable.numbers().len();
            // About half of it, or less; matrices that an optimizer does not cut lie unevenly.
            assert!(n_own < trainable.n_params() * 3 / 4, "{n_own} on {n_ranks}");
        }
        decoder.begin_alone(&mut trainable, open.store()).expect("the weights are good");
        let mut state = State::new(30, Identity::default());
        if let Some(path) = from {
            let loaded = checkpoint::load(path, &trainable, optimizer).expect("it is whole");
            (trainable, optimizer, state) = (loaded.adapter, loaded.optimizer, loaded.state);
        }
        let parts = (trainable, optimizer, state);
        let more = (None, Keep::Everything);
        let (sharing, link) = (shared.sharing(), linked.link());
        let team = Team { group: &group, sharing, updates_on: None, link };
        let plan = job.plan.clone();
        let mut run = Run::with_team(&decoder, plan, job.objective, parts, more, Some(team));
        let done = group.is_leader().then(|| {
            let done = work(&mut run.session);
            dismiss(&group, 0).expect("they listen");
            done
        });
        if done.is_none() {
            assert_eq!(run.session.follow().expect("led"), 0);
        }
        assert_eq!(run.session.adapter().is_in_parts(), is_in_parts);
        drop(run);
        group.end().expect("together");
        done
    };
    let mut done: Vec<Option<T>> = std::thread::scope(|scope| {
        let start = |thread| scope.spawn(move || rank(thread));
        let handles: Vec<_> = threads::ranks(n_ranks).into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    done.swap_remove(0).expect("the first leads")
}

fn left(job: &Job<'_>, by: (usize, Shared), from: Option<&Path>) -> Left {
    on_ranks(job, by, from, &|session| {
        let mut digests = Vec::new();
        let mut step = || {
            let step = session.step().expect("finite");
            digests.push(session.weights_sha256(1).expect("together"));
            step
        };
        let steps = (0..job.n_steps).map(|_| step()).collect();
        let evaluation = session.evaluate().expect("finite");
        let optimizer = session.optimizer().expect("together").state_bytes();
        let params = session.whole_adapter().expect("together").params().to_vec();
        Left { params, digests, optimizer, steps, evaluation }
    })
}

const BY: [(usize, Shared); 5] = [
    (1, Shared::Parameters),
    (2, Shared::Gradients),
    (2, Shared::Parameters),
    (4, Shared::Parameters),
    (4, Shared::ParametersOfPairs),
];

#[test]
fn every_weight_in_parts_trains_to_the_same_bits() {
    let answers = of_answers();
    let of = |name: &str| answers.iter().find(|(of, _)| *of == name).expect("known").1;
    let adafactor = OptimizerSettings::new(Kind::Adafactor, 0.01);
    let galore = GaloreSettings {
        rank: 4,
        update_proj_gap: 1,
        scale: 0.25,
        projection: ProjectionType::Std,
        target_modules: Some(vec![".*(q_proj|down_proj).*".to_owned()]),
        layerwise: false,
    };
    let galore = OptimizerSettings { galore: Some(galore), ..OptimizerSettings::adamw(0.01) };
    let jobs = [
        Job::of("tiny-llama", sft(), plan_settings(4, 4)),
        Job { optimizer: galore, ..Job::of("tiny-llama", sft(), plan_settings(4, 4)) },
        // A head that is the embedding, norms that are kept less one; a round without work for some.
        Job::of("tiny-gemma2", sft(), plan_settings(2, 6)),
        Job { optimizer: adafactor, ..Job::of("tiny-llama", of("orpo"), plan_settings(4, 4)) },
        Job::of("tiny-llama", of("grpo"), plan_settings(4, 4)),
    ];
    for (i, job) in jobs.iter().enumerate() {
        let expected = left(job, (1, Shared::Nothing), None);
        assert_ne!(expected.digests[0], expected.digests[1]);
        for by in BY {
            assert!(left(job, by, None) == expected, "job {i}, {by:?}");
        }
    }
}

fn save(session: &Session<'_>, in_shards: bool, dir: &Path) -> PathBuf {
    let (disk, peft) = (Disk::real(), peft());
    if in_shards {
        return session.save_in_shards(&disk, dir, &peft).expect("the disk works");
    }
    let (adapter, optimizer) = (session.whole_adapter(), session.optimizer());
    let (adapter, optimizer) = (adapter.expect("together"), optimizer.expect("together"));
    let view =
        View { adapter: &adapter, peft: &peft, optimizer: &optimizer, state: session.state() };
    checkpoint::save(&disk, dir, view).expect("the disk works")
}

#[test]
fn a_checkpoint_of_parts_is_the_whole_one_and_goes_on_on_any_number() {
    let whole = Job::of("tiny-gemma2", sft(), plan_settings(4, 4));
    let half = Job { n_steps: 1, ..whole.clone() };
    let expected = left(&whole, (1, Shared::Nothing), None);
    let dir = tempfile::tempdir().expect("a folder");
    let saved = |by: (usize, Shared), in_shards: bool| {
        let dir = dir.path().join(format!("{by:?} {in_shards}"));
        let path = on_ranks(&half, by, None, &|session| {
            session.step().expect("finite");
            save(session, in_shards, &dir)
        });
        let merged = dir.join("merged");
        if in_shards {
            assert_eq!(merge::merge(&path, Some(&merged)).expect("good shards"), by.0);
        }
        let whole = if in_shards { &merged } else { &path };
        let file = |name| std::fs::read(whole.join(name)).expect("it is there");
        let files = [file("trained_weights.safetensors"), file("optimizer.safetensors")];
        (path, files)
    };
    let (_, files) = saved((1, Shared::Nothing), false);
    for (by, in_shards) in [((4, Shared::Parameters), true), ((2, Shared::Parameters), false)] {
        let (path, of) = saved(by, in_shards);
        assert!(of == files, "{by:?}");
        for on in [(1, Shared::Nothing), (2, Shared::Parameters), (4, Shared::Gradients)] {
            let found = left(&half, on, Some(&path));
            assert!(found.params == expected.params, "{by:?}, then {on:?}");
            assert_eq!(found.digests[0], expected.digests[1], "{by:?}, then {on:?}");
            assert!(found.optimizer == expected.optimizer, "{by:?}, then {on:?}");
        }
    }
}

#[test]
fn they_do_so_on_devices_that_are_linked() {
    let Some((_alone, devices)) = opened::emulated_devices::<2>() else { return };
    emulator::set_nccl(&Nccl::default());
    let job = Job::of("tiny-gemma2", sft(), plan_settings(4, 4));
    let job = Job { devices: &devices, n_steps: 1, ..job };
    let expected = left(&job, (1, Shared::Nothing), None);
    emulator::reset_counters();
    assert!(left(&job, (2, Shared::Parameters), None) == expected);
    assert!(emulator::counters().nccl_bytes > 0);
}

/// Better numbers of an earlier step, on every process.
#[test]
fn earlier_numbers_take_the_place_of_the_last() {
    let job = Job::of("tiny-llama", sft(), plan_settings(4, 4));
    let dir = tempfile::tempdir().expect("a folder");
    let evaluated = |by: (usize, Shared)| {
        on_ranks(&job, by, None, &|session| {
            session.step().expect("finite");
            let path = save(session, false, &dir.path().join(format!("{by:?}")));
            let then = session.evaluate().expect("finite");
            session.step().expect("finite");
            let between = session.evaluate().expect("finite");
            assert_ne!(then, between);
            session.restore(&path).expect("it is whole");
            assert_eq!(session.evaluate().expect("finite"), then);
            then
        })
    };
    assert_eq!(evaluated((1, Shared::Nothing)), evaluated((2, Shared::Parameters)));
}
