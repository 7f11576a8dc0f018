//! Time, and the best of several rounds.
#![expect(unsafe_code, reason = "the process's CPU clock is not in the standard library")]
#![expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]

use std::time::{Duration, Instant};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Processor time of this process: right for one thread, whoever else is on the machine.
    Processor,
    /// Time on the wall: right for several threads on a quiet machine.
    Wall,
}

impl Clock {
    /// The one that suits a number of threads.
    pub(crate) fn for_threads(n_threads: usize) -> Self {
        if n_threads == 1 { Self::Processor } else { Self::Wall }
    }

    /// Seconds that a call takes.
    pub(crate) fn seconds(self, call: impl FnOnce()) -> f64 {
        match self {
            Self::Wall => {
                let start = Instant::now();
                call();
                start.elapsed().as_secs_f64()
            }
            Self::Processor => {
                let start = processor_time();
                call();
                (processor_time() - start).as_secs_f64()
            }
        }
    }

    /// Seconds of one call, at best: calls it as often as `round` holds, and returns the mean.
    pub(crate) fn round(self, round: Duration, call: &mut dyn FnMut()) -> f64 {
        let once = self.seconds(&mut *call).max(1e-9);
        let n = (round.as_secs_f64() / once).ceil().clamp(1.0, 1e6);
        let n_calls = n as usize;
        let total = self.seconds(|| (0..n_calls).for_each(|_| call()));
        (total / n).min(once)
    }
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that lives on this stack; the clock exists on every Unix.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "the processor clock cannot be read");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
