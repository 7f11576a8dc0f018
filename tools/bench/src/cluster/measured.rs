//! Two processes that were measured, beside what the simulation makes of figures of one process and
//! of the link alone. docs/performance/distributed.md says how they were measured.
//!
//! The unit of all times is a step of one process with two threads, so that the speed of the machine
//! is in none of them.

use super::machine::{Cluster, Link};
use super::step::{NUMBER, Step, Strategy, Visit, simulate};

/// The step of two processes of one thread each.
struct Two {
    strategy: Strategy,
    seconds: f64,
    /// Least and most, round by round.
    rounds: [f64; 2],
}

/// What was measured of one kind of training.
struct Case {
    name: &'static str,
    /// Which measurement: the statistic was chosen after the first, and kept for the second.
    set: &'static str,
    n_trained: f64,
    /// A step of half of the micro-batches in a process of one thread, which another one like it runs
    /// beside.
    half: f64,
    /// A word between the two processes, and a sum and a gather of as many numbers as are trained.
    word: f64,
    reduce: f64,
    gather: f64,
    two: [Two; 2],
}

/// Micro-batches of each of two ranks.
const N_MICRO_BATCHES: usize = 4;

const CASES: [Case; 4] = [
    Case {
        name: "LoRA, r=16",
        set: "first",
        n_trained: 311_296.0,
        half: 0.893,
        word: 0.0001,
        reduce: 0.0029,
        gather: 0.0023,
        two: [
            Two { strategy: Strategy::NoShard, seconds: 0.879, rounds: [0.40, 1.22] },
            Two { strategy: Strategy::Zero2, seconds: 0.906, rounds: [0.44, 1.38] },
        ],
    },
    Case {
        name: "every weight",
        set: "first",
        n_trained: 3_410_176.0,
        half: 1.164,
        word: 0.0001,
        reduce: 0.0370,
        gather: 0.0286,
        two: [
            Two { strategy: Strategy::NoShard, seconds: 1.313, rounds: [1.01, 4.51] },
            Two { strategy: Strategy::Zero2, seconds: 1.443, rounds: [1.37, 3.07] },
        ],
    },
    Case {
        name: "LoRA, r=16",
        set: "second",
        n_trained: 311_296.0,
        half: 0.834,
        word: 0.0239,
        reduce: 0.0276,
        gather: 0.0269,
        two: [
            Two { strategy: Strategy::NoShard, seconds: 1.485, rounds: [0.35, 1.85] },
            Two { strategy: Strategy::Zero2, seconds: 1.491, rounds: [0.39, 1.95] },
        ],
    },
    Case {
        name: "every weight",
        set: "second",
        n_trained: 3_410_176.0,
        half: 1.034,
        word: 0.0082,
        reduce: 0.0429,
        gather: 0.0297,
        two: [
            Two { strategy: Strategy::NoShard, seconds: 1.286, rounds: [0.88, 2.11] },
            Two { strategy: Strategy::Zero2, seconds: 1.597, rounds: [0.95, 2.18] },
        ],
    },
];

impl Case {
    /// The simulated step of two processes, with exchanges that hide behind computing or do not.
    fn simulated(&self, strategy: Strategy, overlaps: bool) -> f64 {
        // Of two ranks each sends half of the numbers, and adds the half that comes to its own.
        let sent = NUMBER * self.n_trained / 2.0;
        let link = Link { latency: self.word, bandwidth: sent / (self.gather - self.word) };
        let cluster = Cluster {
            n_ranks: 2,
            per_host: 2,
            near: link,
            far: link,
            adding: sent / (self.reduce - self.gather),
        };
        // The half step has an update of all numbers in it.
        let seconds = self.half / N_MICRO_BATCHES as f64;
        let step = Step {
            strategy,
            // One unit: a gradient was exchanged as a whole when this was measured.
            visits: vec![Visit { seconds, bytes: 0.0, trained: self.n_trained }],
            n_micro_batches: N_MICRO_BATCHES,
            update: 0.0,
            overlaps,
        };
        simulate(&step, &cluster).seconds
    }
}

/// As the page has it.
pub(super) fn table() -> String {
    let mut text = String::from(
        "| two processes | set | | step, measured | round by round | simulated | exchanges hidden |\n\
         |---|---|---|--:|--:|--:|--:|\n",
    );
    for case in &CASES {
        for Two { strategy, seconds, rounds: [least, most] } in &case.two {
            let [plain, hidden] = [false, true].map(|overlaps| case.simulated(*strategy, overlaps));
            text += &format!(
                "| {} | {} | `{}` | {seconds:.2} | {least:.2} to {most:.2} | {plain:.2} | {hidden:.2} |\n",
                case.name,
                case.set,
                strategy.name(),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::CASES;

    /// No closer than two fifths, which is what a busy machine allows: the second measurement, whose
    /// statistic was fixed before it, is the one that says so.
    #[test]
    fn two_processes_take_what_is_simulated_from_figures_of_one() {
        for case in &CASES {
            for two in &case.two {
                let simulated = case.simulated(two.strategy, false);
                let off = (simulated / two.seconds - 1.0).abs();
                let what = format!("{}, {}, {}", case.name, case.set, two.strategy.name());
                assert!(off < 0.4, "{what}: {simulated:.3}, not {:.3}", two.seconds);
            }
        }
    }
}
