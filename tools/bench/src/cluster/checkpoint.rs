//! How far apart checkpoints should be, where machines fail now and then.
//!
//! Papers: Young 1974, doi:10.1145/361147.361115, and Daly 2006, doi:10.1016/j.future.2004.11.016
//! (eq. 13, its first term): an interval of sqrt(2 c M) loses the least time, where a checkpoint takes
//! c seconds and failures come every M seconds. Grattafiori et al. 2024, arXiv:2407.21783, section
//! 3.3.4: 419 unexpected interruptions in 54 days of 16,384 GPUs.

/// GPUs, days and interruptions of Llama 3's training.
const OBSERVED: (f64, f64, f64) = (16_384.0, 54.0, 419.0);

/// Seconds from one failure to the next, if each GPU fails as often as those did.
pub(crate) fn between_failures(n_gpus: usize) -> f64 {
    let (gpus, days, failures) = OBSERVED;
    days * 86_400.0 / failures * gpus / n_gpus as f64
}

/// Seconds from one checkpoint to the next.
pub(crate) fn interval(checkpoint_seconds: f64, n_gpus: usize) -> f64 {
    (2.0 * checkpoint_seconds * between_failures(n_gpus)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::{between_failures, interval};

    /// A mean of 3.1 hours; scaled by size 12 and 50 hours. At 30 seconds a checkpoint every 14, 27 and
    /// 55 minutes.
    #[test]
    fn failures_and_intervals_are_those_of_the_study() {
        for (n_gpus, hours, minutes) in
            [(16_384, 3.1, 14.0), (4096, 12.4, 27.0), (1024, 49.5, 54.5)]
        {
            let found = between_failures(n_gpus) / 3600.0;
            assert!((found / hours - 1.0).abs() < 0.01, "{found} h of {n_gpus}");
            let found = interval(30.0, n_gpus) / 60.0;
            assert!((found - minutes).abs() < 0.7, "{found} min of {n_gpus}");
        }
    }
}
