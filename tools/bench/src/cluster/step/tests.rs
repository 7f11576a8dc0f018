//! Steps that can be reckoned by hand, bytes that were counted, and a step that was measured.

use super::super::machine::tests::slow;
use super::super::machine::{Circle, Cluster, Link};
use super::{N_PIECES, Outcome, Step, Strategy, Visit, simulate};
use forgelm_collective::threads::{Thread, ranks};
use forgelm_collective::{Group, Settings};
use std::ops::Range;
use std::time::Duration;

/// Three units up, and the middle one again: 1, 4, 2 and 4 seconds; 8 bytes each. Two micro-batches of
/// a rank, 4 trained numbers in the middle unit, an update of 1 second for all of them.
fn step(strategy: Strategy) -> Step {
    let visit = |(seconds, trained)| Visit { seconds, bytes: 8.0, trained };
    Step {
        strategy,
        visits: [(1.0, 0.0), (4.0, 0.0), (2.0, 0.0), (4.0, 4.0)].map(visit).to_vec(),
        n_micro_batches: 2,
        update: 0.25,
        overlaps: true,
    }
}

fn train(step: &mut Step, n_trained: f64) {
    step.visits.last_mut().unwrap().trained = n_trained;
}

fn fast(n_ranks: usize) -> Cluster {
    let link = Link { latency: 0.0, bandwidth: f64::INFINITY };
    Cluster { near: link, far: link, ..slow(n_ranks, 2) }
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
}

/// Two micro-batches of 11 seconds and the update.
#[test]
fn one_rank_takes_what_it_computes() {
    for strategy in Strategy::ALL {
        let outcome = simulate(&step(strategy), &slow(1, 8));
        let expected = Outcome {
            seconds: 23.0,
            exposed: 0.0,
            sent: 0.0,
            sent_least: 0.0,
            seconds_least: 23.0,
        };
        assert_eq!(outcome, expected, "{}", strategy.name());
    }
}

/// Where bytes take no time, ranks take what one takes; only the update is shared out.
#[test]
fn links_without_a_limit_cost_nothing() {
    for strategy in Strategy::ALL {
        let outcome = simulate(&step(strategy), &fast(4));
        let update = if strategy == Strategy::NoShard { 1.0 } else { 0.25 };
        assert_near(outcome.seconds, 22.0 + update);
        assert_near(outcome.exposed, 0.0);
    }
}

/// Two ranks that compute nothing, at 2 bytes a second: half of each array is sent. The gradient is 16
/// bytes: 8 to be added up, 4 seconds, and 4 seconds for the new numbers. A unit takes 2 seconds.
#[test]
fn without_computing_a_step_takes_its_bytes_over_the_bandwidth() {
    for (strategy, sent) in [
        (Strategy::NoShard, 8.0 + 8.0),
        (Strategy::Zero2, 2.0 * 8.0 + 8.0),
        (Strategy::FullShard, 2.0 * (8.0 + 4.0 * 4.0) + 8.0),
    ] {
        let mut step = step(strategy);
        step.visits.iter_mut().for_each(|visit| visit.seconds = 0.0);
        step.update = 0.0;
        let outcome = simulate(&step, &slow(2, 2));
        assert_near(outcome.sent, sent);
        assert_near(outcome.seconds, sent / 2.0);
        assert_near(outcome.exposed, sent / 2.0);
        // Sums of a step can be made before anything is sent.
        let of_base = if strategy == Strategy::FullShard { 2.0 * 4.0 * 4.0 } else { 0.0 };
        assert_near(outcome.sent_least, 16.0 + of_base);
        assert_near(outcome.seconds_least, (16.0 + of_base) / 2.0);
    }
}

/// Without a gradient: units of 2 seconds to gather, visits of 1, 4, 2 and 4 seconds, twice. The first
/// gather cannot hide. Of each other one as much is hidden as the visit before it lasts, which falls
/// short by a second after each visit of the first unit.
#[test]
fn a_unit_on_its_way_hides_as_much_as_the_visit_before_it_lasts() {
    let mut step = step(Strategy::FullShard);
    train(&mut step, 0.0);
    step.update = 0.0;
    let ahead = simulate(&step, &slow(2, 2));
    assert_near(ahead.exposed, 2.0 + 2.0 * (2.0 - 1.0));
    step.overlaps = false;
    assert_near(simulate(&step, &slow(2, 2)).exposed, 8.0 * 2.0);
    // The least of computing and gathering, whatever they are.
    for (seconds, bytes) in [(3.0, 8.0), (2.0, 8.0), (0.5, 8.0), (1.0, 0.0)] {
        step.visits = vec![Visit { seconds, bytes, trained: 0.0 }; 4];
        step.overlaps = false;
        let plain = simulate(&step, &slow(2, 2)).exposed;
        step.overlaps = true;
        let hidden = plain - simulate(&step, &slow(2, 2)).exposed;
        assert_near(hidden, 7.0 * f64::min(seconds, bytes / 4.0));
    }
}

/// A sum travels while what follows is computed; the last one has nothing to hide behind. 16 bytes
/// take 4 seconds, and with half a byte a second 16, of which 11 are hidden.
#[test]
fn a_gradient_travels_while_what_follows_is_computed() {
    let step = step(Strategy::Zero2);
    assert_near(simulate(&step, &slow(2, 2)).exposed, 4.0 + 4.0);
    let waiting = Step { overlaps: false, ..step.clone() };
    assert_near(simulate(&waiting, &slow(2, 2)).exposed, 2.0 * 4.0 + 4.0);
    let near = Link { latency: 0.0, bandwidth: 0.5 };
    let slower = Cluster { near, ..slow(2, 2) };
    assert_near(simulate(&step, &slower).exposed, (16.0 - 11.0) + 16.0 + 16.0);
}

/// The same numbers in two units: the half that is final 2 or 4 seconds before the end hides its 2
/// seconds, and 2 remain.
#[test]
fn a_unit_does_not_wait_for_the_ones_below() {
    for upper in [1, 2] {
        let mut step = step(Strategy::Zero2);
        (step.visits[upper].trained, step.visits[3].trained) = (2.0, 2.0);
        let outcome = simulate(&step, &slow(2, 2));
        assert_near(outcome.exposed, 2.0 + 4.0);
        assert_near(outcome.sent, 2.0 * 8.0 + 8.0);
    }
}

/// Four ranks on two hosts. Within a host the units take 2 seconds, and the hosts do not wait for each
/// other; over all ranks a unit is 2 bytes to the neighbor and 4 to the other host, 4 seconds.
#[test]
fn a_base_that_is_whole_on_every_host_does_not_wait_for_the_network() {
    let base_alone = |strategy| {
        let mut step = step(strategy);
        train(&mut step, 0.0);
        step.update = 0.0;
        simulate(&step, &slow(4, 2)).exposed
    };
    assert_near(base_alone(Strategy::HybridShard), 2.0 + 2.0 * (2.0 - 1.0));
    // Behind 1, 4, 2 and 4 seconds: 3, 0, 2 and 0 of 4 show, and the very first.
    assert_near(base_alone(Strategy::FullShard), 4.0 + 2.0 * 3.0 + 2.0 * 2.0);
}

/// Words before the step, for losses and for squares: seven messages to the other rank.
#[test]
fn words_cost_their_messages() {
    let near = Link { latency: 1.0, bandwidth: f64::INFINITY };
    let cluster = Cluster { near, ..fast(2) };
    let mut step = step(Strategy::NoShard);
    assert_near(simulate(&step, &cluster).exposed, 2.0 + 2.0 + 2.0);
    step.strategy = Strategy::Zero2;
    // The sum of the first micro-batch is hidden.
    assert_near(simulate(&step, &cluster).exposed, 2.0 + 1.0 + 4.0 + 1.0);
}

/// What each of some ranks sends in a step of `n_rounds` micro-batches, by the calls that training
/// makes.
fn counted(strategy: Strategy, n_ranks: usize, n: usize, n_rounds: usize) -> Vec<u64> {
    let settings = Settings::with_deadline(Duration::from_secs(60));
    let ranges: Vec<Range<usize>> =
        (0..n_ranks).map(|rank| rank * n / n_ranks..(rank + 1) * n / n_ranks).collect();
    let work = |thread: Thread, ranges: Vec<Range<usize>>| {
        let group = Group::open(|| Ok(Box::new(thread)), settings).unwrap();
        let n_reduces = if strategy == Strategy::NoShard { 1 } else { n_rounds };
        for _ in 0..n_reduces {
            let (own, ranges) = (vec![1.0_f32; n], ranges.clone());
            let sum = group.start(move |line| line.reduce_scatter(&own, &ranges, n_ranks));
            sum.wait().unwrap();
        }
        let own = vec![1.0; ranges[group.rank()].len()];
        group.all_gather_ranges(own, ranges).unwrap();
        let sent = group.n_bytes_sent();
        group.end().unwrap();
        sent
    };
    std::thread::scope(|scope| {
        let start = |thread| scope.spawn(|| work(thread, ranges.clone()));
        let handles: Vec<_> = ranks(n_ranks).into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

#[test]
fn bytes_are_those_that_the_collective_counts() {
    let n = 960;
    for n_ranks in [1, 2, 4, 8] {
        for (strategy, n_rounds) in [(Strategy::NoShard, 3), (Strategy::Zero2, 3)] {
            let mut step = step(strategy);
            train(&mut step, n as f64);
            step.n_micro_batches = n_rounds;
            let outcome = simulate(&step, &slow(n_ranks, 8));
            let least = 2.0 * 4.0 * n as f64 * (n_ranks - 1) as f64 / n_ranks as f64;
            assert_near(outcome.sent_least, least);
            for sent in counted(strategy, n_ranks, n, n_rounds) {
                assert_near(sent as f64, outcome.sent);
            }
            if strategy == Strategy::NoShard {
                assert_near(outcome.sent, least);
            }
        }
    }
}

/// The number is private to `core/train`, so its source is asked.
#[test]
fn there_are_as_many_pieces_as_training_makes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../core/train/src/session");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text: String = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let line = format!("const N_PIECES: usize = {N_PIECES};");
    assert!(text.contains(&line), "no `{line}` in core/train/src/session");
}

/// Beyond as many ranks as there are pieces, who owns one sends more than the least.
#[test]
fn more_ranks_than_pieces_leave_owners_with_more_to_send() {
    let sent = |n_ranks| {
        let outcome = simulate(&step(Strategy::NoShard), &slow(n_ranks, 8));
        outcome.sent / outcome.sent_least
    };
    assert_near(sent(N_PIECES), 1.0);
    // 63 parts to their owners, and the own one to 127 ranks.
    let (whole, part) = (16.0, 16.0 / 64.0);
    assert_near(sent(128), (63.0 + 127.0) * part / (2.0 * whole * 127.0 / 128.0));
    assert_eq!(slow(128, 8).size(Circle::Host), 8);
}
