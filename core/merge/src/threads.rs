//! Work on several threads, without an order.

use std::sync::{Mutex, PoisonError};

/// Calls `work` on every job, on up to `n_threads` threads; each thread makes its own `state` once.
/// Stops at the first error, of the jobs that were begun the one with the lowest number.
pub fn for_each<J: Send, S, E: Send>(
    n_threads: usize,
    jobs: Vec<J>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let n_threads = n_threads.clamp(1, jobs.len().max(1));
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let worker = || {
        let mut state = state();
        loop {
            let is_over = failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, job)) = job.filter(|_| !is_over) else { return };
            if let Err(error) = work(&mut state, job) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                    *failed = Some((number, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(worker);
        }
        worker();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::for_each;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_job_is_done_once_and_an_error_ends_it() {
        for n_threads in [1, 2, 7] {
            let sum = AtomicUsize::new(0);
            let add = |_: &mut (), job: usize| {
                sum.fetch_add(job, Ordering::Relaxed);
                Ok::<(), usize>(())
            };
            for_each(n_threads, (0..100).collect(), || (), add).expect("nothing fails");
            assert_eq!(sum.into_inner(), 4950);
            let fail = |_: &mut (), job: usize| if job == 7 { Err(job) } else { Ok(()) };
            assert_eq!(for_each(n_threads, (0..100).collect(), || (), fail), Err(7));
        }
    }
}
