//! Time, and the best of several rounds.
#![expect(unsafe_code, reason = "the process's CPU clock is not in the standard library")]
#![expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]

use std::time::{Duration, Instant};

/// What a call takes, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Of this process by its processor clock.
    processor: f64,
    /// On the wall.
    wall: f64,
}

impl Times {
    /// More than anything takes.
    pub(crate) const MAX: Self = Self { processor: f64::INFINITY, wall: f64::INFINITY };

    /// Those to quote. For one thread the processor clock: fair, whoever else is on the machine.
    /// For several threads the wall, which is right on a quiet machine alone: the processor clock
    /// is no way out, since it leaves out what other threads that are running have used since the
    /// last tick (it gave rates above the peak that is physically possible).
    pub(crate) fn seconds(self, n_threads: usize) -> f64 {
        if n_threads == 1 { self.processor } else { self.wall }
    }

    /// On the wall, for what waits for a disk.
    pub(crate) fn wall(self) -> f64 {
        self.wall
    }

    /// The smaller of each.
    #[must_use]
    pub(crate) fn min(self, other: Self) -> Self {
        Self { processor: self.processor.min(other.processor), wall: self.wall.min(other.wall) }
    }

    /// Of one call of several.
    #[must_use]
    fn of_one(self, n: f64) -> Self {
        Self { processor: self.processor / n, wall: self.wall / n }
    }
}

/// Times one call.
pub(crate) fn time(call: impl FnOnce()) -> Times {
    let (wall, processor) = (Instant::now(), processor_time());
    call();
    Times {
        processor: (processor_time() - processor).as_secs_f64(),
        wall: wall.elapsed().as_secs_f64(),
    }
}

/// Times of one call: the mean of as many as `round` holds.
pub(crate) fn round(round: Duration, call: &mut dyn FnMut()) -> Times {
    let once = time(&mut *call);
    let n = (round.as_secs_f64() / once.wall.max(1e-9)).ceil().clamp(1.0, 1e6);
    let n_calls = n as usize;
    time(|| (0..n_calls).for_each(|_| call())).of_one(n).min(once)
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that lives on this stack; the clock exists on every Unix.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "the processor clock cannot be read");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
