//! When what happens on every rank: a thread that computes, and a thread that exchanges.
//!
//! Each thread does one thing after the other in the order in which it is told, and an exchange begins
//! when it has come to the front on all its ranks, as calls of `forgelm_collective::Group` do. Whoever
//! tells every event after those that it waits for needs no queue: an event is known by the time at
//! which it ends. Times are seconds since the step began.

use std::ops::Range;

/// The threads of some ranks, each by the time at which it is free.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    compute: Vec<f64>,
    exchange: Vec<f64>,
    /// What each rank computed, without waiting.
    computed: Vec<f64>,
}

impl Timeline {
    pub(crate) fn new(n_ranks: usize) -> Self {
        let zeros = vec![0.0; n_ranks];
        Self { compute: zeros.clone(), exchange: zeros.clone(), computed: zeros }
    }

    /// When the thread that computes is free.
    pub(crate) fn now(&self, rank: usize) -> f64 {
        self.compute[rank]
    }

    /// Seconds that a rank computed.
    pub(crate) fn computed(&self, rank: usize) -> f64 {
        self.computed[rank]
    }

    /// The thread that computes waits.
    pub(crate) fn wait(&mut self, rank: usize, until: f64) {
        self.compute[rank] = self.compute[rank].max(until);
    }

    /// The thread that computes works.
    pub(crate) fn compute(&mut self, rank: usize, seconds: f64) {
        self.compute[rank] += seconds;
        self.computed[rank] += seconds;
    }

    /// An exchange between neighboring ranks, of which each asks for it at a time of its own (`asked`,
    /// by rank): when it ends, on all of them.
    pub(crate) fn exchange(&mut self, ranks: Range<usize>, asked: &[f64], seconds: f64) -> f64 {
        let come = |rank: usize| self.exchange[rank].max(asked[rank]);
        let end = ranks.clone().map(come).fold(0.0, f64::max) + seconds;
        self.exchange[ranks].fill(end);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::Timeline;

    /// Rank 0 asks at 1, rank 1 at 3: both are through at 5. What rank 0 asked for meanwhile waits.
    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers")]
    fn an_exchange_begins_with_the_last_rank_and_the_next_one_behind_it() {
        let mut line = Timeline::new(3);
        assert_eq!(line.exchange(0..2, &[1.0, 3.0, 0.0], 2.0), 5.0);
        assert_eq!(line.exchange(0..1, &[2.0, 0.0, 0.0], 1.0), 6.0);
        assert_eq!(line.exchange(2..3, &[0.0, 0.0, 4.0], 1.0), 5.0, "another group is not held up");
        line.compute(0, 1.5);
        line.wait(0, 6.0);
        line.wait(0, 2.0);
        line.compute(0, 1.0);
        assert_eq!((line.now(0), line.computed(0)), (7.0, 2.5));
    }
}
