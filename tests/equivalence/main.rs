//! Settings that must agree, tested against each other on a tiny model: how a step is cut into
//! micro-batches, whether sequences are packed, how many threads work, and whether a run is
//! interrupted.
#![expect(clippy::print_stdout, reason = "a test says what it skips")]

mod devices;
mod in_parts;
mod ranks;
mod shards;
#[path = "../sim/tiny.rs"]
mod tiny;

use forgelm_data::PlanSettings;
use forgelm_model::Keep;
use forgelm_train::session::Cut;
use tiny::{Objective, Run, of_answers, plan_settings, sequences, sft, tiny_decoder};

/// Largest difference between two adapters after ten steps whose only difference is the order of
/// additions: what the golden values allow between two implementations (2e-5 for a learning rate
/// of 1e-3), not scaled up for the larger one here.
const TOLERANCE: f32 = 2e-5;

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The adapter after ten steps.
fn train(settings: PlanSettings, n_threads: usize, dropout: f32) -> Vec<f32> {
    train_with(sft(), settings, n_threads, dropout)
}

fn train_with(
    objective: Objective<'_>,
    settings: PlanSettings,
    n_threads: usize,
    dropout: f32,
) -> Vec<f32> {
    let decoder = tiny_decoder(n_threads);
    let mut run = Run::with_trainer(&decoder, settings, dropout, objective);
    run.steps(10).params().to_vec()
}

#[test]
fn a_step_is_the_same_however_it_is_cut_into_micro_batches() {
    let whole = train(plan_settings(8, 1), 1, 0.0);
    for (batch_size, accumulation) in [(1, 8), (2, 4), (4, 2)] {
        let cut = train(plan_settings(batch_size, accumulation), 1, 0.0);
        let difference = largest_difference(&whole, &cut);
        assert!(difference < TOLERANCE, "{batch_size} x {accumulation}: {difference}");
        assert!(whole != cut || difference == 0.0);
    }
}

/// Units are never taken apart, and what is estimated over a step is over the step however it is
/// cut: the mean of KTO's mismatched pairs, the denominators of ORPO.
#[test]
fn a_step_of_answers_is_the_same_however_it_is_cut() {
    for (name, objective) in of_answers() {
        let whole = train_with(objective, plan_settings(8, 1), 1, 0.0);
        for (batch_size, accumulation) in [(1, 8), (4, 2)] {
            let cut = train_with(objective, plan_settings(batch_size, accumulation), 1, 0.0);
            let difference = largest_difference(&whole, &cut);
            assert!(difference < TOLERANCE, "{name}: {batch_size} x {accumulation}: {difference}");
        }
    }
}

/// The answers of a step are a function of the policy, the step and the record, and the tiny policy
/// learns to write more of the small letters that are rewarded.
#[test]
fn answers_of_the_policy_earn_more_with_every_step() {
    let decoder = tiny_decoder(1);
    let grpo = of_answers().into_iter().find(|(name, _)| *name == "grpo").expect("listed").1;
    let grpo = Objective { learning_rate: 0.1, ..grpo };
    let mut run = Run::with_trainer(&decoder, plan_settings(64, 1), 0.0, grpo);
    let mut rewards = Vec::new();
    for _ in 0..60 {
        let report = run.session.step().expect("finite");
        rewards.push(report.metrics["reward"]);
        let cut = report.metrics["completions/clipped_ratio"];
        assert!((0.0..=1.0).contains(&cut), "{report:?}");
        assert!(report.metrics["completions/max_length"] <= 8.0, "{report:?}");
    }
    // Rewards of a step scatter by 8 % on any instruction set: the mean of the first five by 4 %, that
    // of the last thirty by less.
    let sum = |rewards: &[f64]| rewards.iter().sum::<f64>();
    let (before, after) = (sum(&rewards[..5]) / 5.0, sum(&rewards[30..]) / 30.0);
    assert!(after > 1.08 * before, "the reward went from {before} to {after}: {rewards:?}");
    assert!(run.session.evaluate().expect("read").is_none(), "rewards are no loss");
}

/// Methods that compare two passes have none.
#[test]
fn dropout_changes_no_bit_of_a_step_of_answers() {
    let compares = |(_, of): &(&str, Objective<'_>)| !of.needs.dropout;
    let of_two: Vec<_> = of_answers().into_iter().filter(compares).collect();
    assert_eq!(of_two.len(), 4);
    for (name, objective) in of_two {
        let with = train_with(objective, plan_settings(4, 2), 1, 0.3);
        assert!(with == train_with(objective, plan_settings(4, 2), 1, 0.0), "{name}");
    }
}

#[test]
fn dropout_masks_do_not_depend_on_the_cut_either() {
    let whole = train(plan_settings(8, 1), 1, 0.3);
    let cut = train(plan_settings(1, 8), 1, 0.3);
    let without = train(plan_settings(8, 1), 1, 0.0);
    let difference = largest_difference(&whole, &cut);
    assert!(difference < TOLERANCE, "{difference}");
    assert!(largest_difference(&whole, &without) > 10.0 * TOLERANCE, "dropout does something");
}

#[test]
fn noise_does_not_depend_on_the_cut_and_recomputed_activations_have_the_same_bits() {
    let train = |batch_size, accumulation, noise_alpha, keep| {
        let decoder = tiny_decoder(1);
        let settings = plan_settings(batch_size, accumulation);
        let plain = Run::new(&decoder, settings.clone(), 0.2).session;
        let parts = (
            plain.adapter().clone(),
            plain.optimizer().unwrap().into_owned(),
            plain.state().clone(),
        );
        let mut run = Run::with_noise(&decoder, settings, sft(), parts, (noise_alpha, keep));
        run.steps(10).params().to_vec()
    };
    let whole = train(8, 1, Some(5.0), Keep::Everything);
    let cut = train(2, 4, Some(5.0), Keep::Everything);
    let difference = largest_difference(&whole, &cut);
    assert!(difference < TOLERANCE, "{difference}");
    let without = train(8, 1, None, Keep::Everything);
    assert!(largest_difference(&whole, &without) > 10.0 * TOLERANCE, "noise does something");
    assert!(whole == train(8, 1, Some(5.0), Keep::LayerInputs), "recomputed activations");
}

/// Buffers made anew in the middle, in other pieces: the steps before keep their bits, and the
/// steps after are those of a run that was continued with the other cut.
#[test]
fn a_run_cut_anew_in_the_middle_is_one_that_was_continued_so() {
    let decoder = tiny_decoder(1);
    let mut run = Run::new(&decoder, plan_settings(8, 1), 0.2);
    run.steps(4);
    let session = &run.session;
    let optimizer = session.optimizer().unwrap().into_owned();
    let parts = (session.adapter().clone(), optimizer, session.state().clone());
    let smaller = Cut { batch_size: 2, accumulation: 4 };
    let (given_back, made) = run.session.allocate(smaller, Keep::LayerInputs).unwrap();
    assert!(made < given_back, "{made} of {given_back}");
    let mut continued = Run::from_parts(&decoder, plan_settings(2, 4), sft(), parts);
    assert!(run.steps(4).params() == continued.steps(4).params());
}

#[test]
fn threads_do_not_change_a_bit() {
    let one = train(plan_settings(4, 2), 1, 0.2);
    for n_threads in [2, 3, 5] {
        assert!(one == train(plan_settings(4, 2), n_threads, 0.2), "{n_threads} threads");
    }
}

#[test]
fn threads_do_not_change_a_bit_of_a_step_of_answers() {
    for (name, objective) in of_answers() {
        let one = train_with(objective, plan_settings(4, 2), 1, 0.0);
        for n_threads in [2, 3] {
            let more = train_with(objective, plan_settings(4, 2), n_threads, 0.0);
            assert!(one == more, "{name} on {n_threads} threads");
        }
    }
}

/// With one bin that holds every sequence, a packed step is the step of a batch of all of them.
#[test]
fn packed_sequences_do_not_see_each_other() {
    let n = sequences().len();
    let total = sequences().iter().map(|sequence| sequence.tokens.len()).sum();
    let padded = train(plan_settings(n, 1), 1, 0.0);
    let packed = train(PlanSettings { packed_to: Some(total), ..plan_settings(1, 1) }, 1, 0.0);
    let difference = largest_difference(&padded, &packed);
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn training_moves_the_adapter_and_lowers_the_loss() {
    let decoder = tiny_decoder(1);
    let mut run = Run::new(&decoder, plan_settings(8, 1), 0.0);
    let before = run.session.evaluate().expect("read").expect("there is a validation split").loss;
    run.steps(30);
    let after = run.session.evaluate().expect("read").expect("there is a validation split").loss;
    assert!(after < before - 0.5, "{before} -> {after}");
}
