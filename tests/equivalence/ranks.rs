//! A run of several processes: whatever their number and whatever they share out, the bits of a run
//! of one.

use crate::tiny::{Objective, Run, of_answers, optimizer, plan_settings, sft};
use crate::tiny::{tiny_decoder, tiny_decoder_of};
use forgelm_collective::{Group, Settings, threads};
use forgelm_data::PlanSettings;
use forgelm_model::{Holders, Keep, Prefetch};
use forgelm_train::optimizer::{GaloreSettings, Kind, OptimizerSettings, ProjectionType};
use forgelm_train::session::{EvaluationReport, Sharing, StepReport, Team, dismiss, holders};
use forgelm_train::state::{Identity, State};
use std::time::Duration;

/// What processes share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    Nothing,
    Gradients,
    /// And the frozen weights.
    Parameters,
    /// These between two processes, which have all of them.
    ParametersOfPairs,
}

pub const ALL_SHARED: [Shared; 4] =
    [Shared::Nothing, Shared::Gradients, Shared::Parameters, Shared::ParametersOfPairs];

impl Shared {
    pub fn sharing(self) -> Sharing {
        match self {
            Self::Nothing => Sharing::Nothing,
            Self::Gradients | Self::Parameters | Self::ParametersOfPairs => Sharing::Gradients,
        }
    }

    pub fn holders(self, group: &Group) -> Option<Holders> {
        let host = match self {
            Self::Nothing | Self::Gradients => return None,
            Self::Parameters => None,
            Self::ParametersOfPairs => u32::try_from(group.rank() / 2).ok(),
        };
        Some(holders(group, host, Prefetch::Before).expect("together"))
    }
}

/// Everything that a run leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    params: Vec<f32>,
    optimizer: Vec<u8>,
    steps: Vec<StepReport>,
    evaluation: Option<EvaluationReport>,
}

/// What is trained, and how.
#[derive(Clone)]
struct Job<'a> {
    objective: Objective<'a>,
    plan: PlanSettings,
    optimizer: OptimizerSettings,
    n_steps: usize,
}

impl<'a> Job<'a> {
    fn of(objective: Objective<'a>, batch_size: usize, accumulation: usize) -> Self {
        let plan = plan_settings(batch_size, accumulation);
        Self { objective, plan, optimizer: OptimizerSettings::adamw(0.01), n_steps: 3 }
    }
}

/// Steps on so many ranks, each a thread with a model of its own, from where an earlier run stood.
fn on_ranks(job: &Job<'_>, n_ranks: usize, shared: Shared, from: Option<(&Left, u64)>) -> Left {
    let work = |thread| {
        let settings = Settings::with_deadline(Duration::from_secs(60));
        let group = Group::open(move || Ok(Box::new(thread)), settings).expect("it opens");
        let decoder = tiny_decoder_of(1, shared.holders(&group));
        let like = Run::new(&decoder, job.plan.clone(), 0.2).session;
        let mut adapter = like.adapter().clone();
        let mut optimizer = optimizer(&adapter, job.optimizer.clone());
        let mut state = State::new(30, Identity::default());
        if let Some((left, step)) = from {
            adapter.params_mut().copy_from_slice(&left.params);
            let all = 0..left.params.len();
            optimizer.fill(std::slice::from_ref(&all), &left.optimizer);
            state.global_step = step;
        }
        let parts = (adapter, optimizer, state);
        let more = (None, Keep::Everything);
        let team =
            Some(Team { group: &group, sharing: shared.sharing(), updates_on: None, link: None });
        let plan = job.plan.clone();
        let mut run = Run::with_team(&decoder, plan, job.objective, parts, more, team);
        let left = if group.is_leader() {
            let steps = (0..job.n_steps).map(|_| run.session.step().expect("finite")).collect();
            let evaluation = run.session.evaluate().expect("finite");
            let optimizer = run.session.optimizer().expect("collected").state_bytes();
            dismiss(&group, 7).expect("they listen");
            let params = run.session.adapter().params().to_vec();
            Some(Left { params, optimizer, steps, evaluation })
        } else {
            assert_eq!(run.session.follow().expect("led"), 7);
            None
        };
        let params = run.session.adapter().params().to_vec();
        drop(run);
        group.end().expect("together");
        (left, params)
    };
    let ended: Vec<(Option<Left>, Vec<f32>)> = std::thread::scope(|scope| {
        let start = |thread| scope.spawn(move || work(thread));
        let handles: Vec<_> = threads::ranks(n_ranks).into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    let mut ended = ended.into_iter();
    let (left, params) = ended.next().expect("at least one");
    assert!(ended.all(|(_, of)| of == params), "every rank has what the leader has");
    left.expect("the first leads")
}

/// The objectives, a step of 16 sequences or answers each.
fn jobs() -> Vec<(String, Job<'static>)> {
    let all = std::iter::once(("sft", sft())).chain(of_answers());
    all.map(|(name, objective)| (name.to_owned(), Job::of(objective, 2, 8))).collect()
}

#[test]
fn one_two_four_and_eight_ranks_give_the_same_bits() {
    for (name, job) in jobs() {
        let expected = on_ranks(&job, 1, Shared::Nothing, None);
        assert_eq!(expected, on_ranks(&job, 1, Shared::Gradients, None), "{name} on one");
        for n_ranks in [2, 4, 8] {
            for shared in ALL_SHARED {
                let found = on_ranks(&job, n_ranks, shared, None);
                assert!(found == expected, "{name} on {n_ranks} ranks, {shared:?} shared");
            }
        }
    }
}

/// Steps of six micro-batches, and the last one of an epoch has two: there are rounds in which some
/// ranks have nothing to do.
#[test]
fn so_they_do_where_ranks_run_out_of_work() {
    let job = Job { n_steps: 4, ..Job::of(sft(), 1, 6) };
    let expected = on_ranks(&job, 1, Shared::Nothing, None);
    for n_ranks in [2, 4] {
        for shared in ALL_SHARED {
            let found = on_ranks(&job, n_ranks, shared, None);
            assert!(found == expected, "{n_ranks} ranks, {shared:?} shared");
        }
    }
}

#[test]
fn every_optimizer_can_be_shared_out() {
    let galore = GaloreSettings {
        rank: 2,
        update_proj_gap: 2,
        scale: 0.25,
        projection: ProjectionType::Std,
        target_modules: Some(vec![".*lora_A.*".to_owned()]),
        layerwise: false,
    };
    let plain = [Kind::AdamW, Kind::AdamW8bit, Kind::Adafactor];
    for kind in plain {
        for galore in [None, Some(galore.clone())] {
            let optimizer = OptimizerSettings { galore, ..OptimizerSettings::new(kind, 0.01) };
            let name = optimizer.name();
            let job = Job { optimizer, ..Job::of(sft(), 4, 4) };
            let expected = on_ranks(&job, 1, Shared::Nothing, None);
            for n_ranks in [2, 4] {
                let found = on_ranks(&job, n_ranks, Shared::Gradients, None);
                assert!(found == expected, "{name} on {n_ranks} ranks");
            }
        }
    }
}

#[test]
fn a_run_goes_on_with_any_number_of_ranks() {
    let whole = Job { n_steps: 4, ..Job::of(sft(), 2, 8) };
    let half = Job { n_steps: 2, ..whole.clone() };
    let expected = on_ranks(&whole, 1, Shared::Nothing, None);
    let saved = on_ranks(&half, 4, Shared::Gradients, None);
    let others = [
        (1, Shared::Nothing),
        (2, Shared::Gradients),
        (4, Shared::Parameters),
        (8, Shared::Nothing),
    ];
    for (n_ranks, shared) in others {
        let found = on_ranks(&half, n_ranks, shared, Some((&saved, 2)));
        assert!(found.params == expected.params, "{n_ranks} ranks, {shared:?} shared");
        assert!(found.optimizer == expected.optimizer, "{n_ranks} ranks, {shared:?} shared");
    }
}

/// Whoever finds it, all come to the same calls, and the leader tells it.
#[test]
fn numbers_that_are_not_finite_end_a_step_and_an_evaluation_on_all_ranks() {
    let objective = Objective { learning_rate: 1e30, ..sft() };
    for (n_ranks, shared) in [
        (1, Shared::Gradients),
        (2, Shared::Gradients),
        (4, Shared::Gradients),
        (2, Shared::Parameters),
        (4, Shared::ParametersOfPairs),
    ] {
        let work = |thread| {
            let settings = Settings::with_deadline(Duration::from_secs(20));
            let group = Group::open(move || Ok(Box::new(thread)), settings).expect("it opens");
            let decoder = tiny_decoder_of(1, shared.holders(&group));
            let plan = plan_settings(2, 4);
            let like = Run::new(&decoder, plan.clone(), 0.2).session;
            let adapter = like.adapter().clone();
            let optimizer = optimizer(&adapter, OptimizerSettings::adamw(0.01));
            let parts = (adapter, optimizer, State::new(30, Identity::default()));
            let more = (None, Keep::Everything);
            let team = Some(Team {
                group: &group,
                sharing: shared.sharing(),
                updates_on: None,
                link: None,
            });
            let mut run = Run::with_team(&decoder, plan, objective, parts, more, team);
            if group.is_leader() {
                let stepped = (0..6).find_map(|_| run.session.step().err());
                let stepped = stepped.expect("no such rate learns").to_string();
                assert!(stepped.contains("nothing was updated"), "{stepped}");
                let evaluated = run.session.evaluate().expect_err("not finite").to_string();
                assert!(evaluated.contains("of the validation split"), "{evaluated}");
                dismiss(&group, 2).expect("they listen");
            } else {
                assert_eq!(run.session.follow().expect("led"), 2);
            }
            drop(run);
            group.end().expect("together");
        };
        std::thread::scope(|scope| {
            let start = |thread| scope.spawn(move || work(thread));
            let handles: Vec<_> = threads::ranks(n_ranks).into_iter().map(start).collect();
            handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
        });
    }
}

/// Other numbers of ranks than powers of two add up in another order: the same step but for rounding,
/// and always the same bits.
#[test]
fn three_ranks_make_the_same_step_up_to_rounding() {
    let job = Job::of(sft(), 2, 8);
    let expected = on_ranks(&job, 1, Shared::Nothing, None);
    for shared in ALL_SHARED {
        let found = on_ranks(&job, 3, shared, None);
        assert!(found == on_ranks(&job, 3, shared, None), "again the same");
        let difference = crate::largest_difference(&found.params, &expected.params);
        assert!(difference > 0.0, "the order of additions makes a difference");
        assert!(difference < crate::TOLERANCE, "{difference}");
    }
}

/// The tree of additions is no other step than that of a run of one process without ranks.
#[test]
fn a_run_of_ranks_is_the_run_without_up_to_rounding() {
    for (name, job) in jobs() {
        let decoder = tiny_decoder(1);
        let mut alone = Run::with_trainer(&decoder, job.plan.clone(), 0.2, job.objective);
        let expected = alone.steps(job.n_steps).params().to_vec();
        let found = on_ranks(&job, 2, Shared::Gradients, None);
        let difference = crate::largest_difference(&found.params, &expected);
        assert!(difference < crate::TOLERANCE, "{name}: {difference}");
    }
}
