//! Threads that work on one op at a time.
//!
//! An op cuts its work into a fixed grid of tasks, by sizes alone; threads take the next task when
//! they are free. Which thread runs a task changes nothing in its result, so results do not depend
//! on the number of threads.
//!
//! Workers spin briefly after a job, because ops follow each other closely, and then park. Nobody is
//! woken who does not sleep: that would be two system calls a job, of which generation has some
//! hundreds a token. A panic in a task is passed on to the caller after all tasks have ended.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use crate::shared::Shared;

/// How often a worker looks for the next job before it parks: some tens of microseconds.
const SPINS: u32 = 4_000;

thread_local! {
    /// Whether this thread is inside a task: a job started there runs on this thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// `n_threads - 1` workers and the thread that calls.
pub(crate) struct Pool {
    board: Arc<Board>,
    workers: Vec<JoinHandle<()>>,
    one_job_at_a_time: Mutex<()>,
}

/// What the caller and the workers share.
struct Board {
    job: Mutex<Option<Arc<Job>>>,
    /// Grows with every job, so that spinning workers need not take the lock.
    n_jobs: AtomicU64,
    job_posted: Condvar,
    /// Workers that sleep or are about to; changed under the lock of `job`.
    n_parked: AtomicUsize,
    /// Guards nothing but the sleep of the caller.
    finish: Mutex<()>,
    /// Whether the caller sleeps or is about to.
    caller_is_parked: AtomicBool,
    job_finished: Condvar,
    stop: AtomicBool,
}

struct Job {
    /// Borrowed from the caller's stack for longer than the type says: see `Job::work`.
    task: &'static (dyn Fn(usize) + Sync),
    n_tasks: usize,
    next: AtomicUsize,
    n_done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    pub(crate) fn new(n_threads: usize) -> Self {
        let board = Arc::new(Board {
            job: Mutex::new(None),
            n_jobs: AtomicU64::new(0),
            job_posted: Condvar::new(),
            n_parked: AtomicUsize::new(0),
            finish: Mutex::new(()),
            caller_is_parked: AtomicBool::new(false),
            job_finished: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers = (1..n_threads.max(1))
            .map(|i| {
                let board = Arc::clone(&board);
                std::thread::Builder::new()
                    .name(format!("forgelm-cpu-{i}"))
                    .spawn(move || board.serve())
                    .expect("the system refused a thread")
            })
            .collect();
        Self { board, workers, one_job_at_a_time: Mutex::new(()) }
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)..task(n_tasks - 1)`, each once, in any order, and returns when all have ended.
    ///
    /// Whoever finds the workers busy does all of it alone: waiting for them would be no faster, and
    /// would hang for ever where the job that they work on waits for the caller.
    pub(crate) fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let is_serial = self.workers.is_empty() || n_tasks < 2 || IN_TASK.get();
        let turn = if is_serial { None } else { try_lock(&self.one_job_at_a_time) };
        if turn.is_none() {
            (0..n_tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes. `task` is called by `Job::work` alone, for indices
        // below n_tasks, each handed out once; and this function does not return, nor unwind,
        // before all n_tasks calls have ended (`wait_for`), so no call outlives the borrow.
        let task = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task)
        };
        let job = Arc::new(Job {
            task,
            n_tasks,
            next: AtomicUsize::new(0),
            n_done: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        {
            // A worker parks under this lock, after it has looked for a new job: so it has either
            // seen this one or is counted.
            let mut posted = lock(&self.board.job);
            *posted = Some(Arc::clone(&job));
            self.board.n_jobs.fetch_add(1, Ordering::Release);
        }
        if self.board.n_parked.load(Ordering::SeqCst) > 0 {
            self.board.job_posted.notify_all();
        }
        job.work(&self.board);
        self.board.wait_for(&job);
        *lock(&self.board.job) = None;
        let panic = lock(&job.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives each task its own chunk of `a`: `task(i, a[i * len..])`.
    pub(crate) fn chunks<A: Send>(
        &self,
        a: &mut [A],
        len: usize,
        task: impl Fn(usize, &mut [A]) + Sync,
    ) {
        self.chunks3(&mut [(); 0], 0, &mut [(); 0], 0, a, len, |i, _, _, a| task(i, a));
    }

    /// As [`Pool::chunks`], over two slices with as many chunks each.
    pub(crate) fn chunks2<A: Send, B: Send>(
        &self,
        a: &mut [A],
        len_a: usize,
        b: &mut [B],
        len_b: usize,
        task: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        self.chunks3(&mut [(); 0], 0, a, len_a, b, len_b, |i, _, a, b| task(i, a, b));
    }

    /// As [`Pool::chunks`], over three slices; the last one says how many chunks there are.
    #[expect(clippy::too_many_arguments, reason = "three pairs of a slice and its chunk length")]
    pub(crate) fn chunks3<A: Send, B: Send, C: Send>(
        &self,
        a: &mut [A],
        len_a: usize,
        b: &mut [B],
        len_b: usize,
        c: &mut [C],
        len_c: usize,
        task: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
    ) {
        let n_tasks = c.len().div_ceil(len_c.max(1));
        let (a, b, c) = (Shared::new(a), Shared::new(b), Shared::new(c));
        self.run(n_tasks, &|i| {
            // SAFETY: chunk i of each slice is taken by task i alone, and chunks do not overlap.
            let (a, b, c) = unsafe {
                (
                    a.slice(chunk(i, len_a, a.len())),
                    b.slice(chunk(i, len_b, b.len())),
                    c.slice(chunk(i, len_c, c.len())),
                )
            };
            task(i, a, b, c);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = lock(&self.board.job);
            self.board.stop.store(true, Ordering::Release);
        }
        self.board.job_posted.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks; there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

impl Board {
    /// A worker's life.
    fn serve(&self) {
        let mut n_seen = 0;
        while let Some(job) = self.next_job(&mut n_seen) {
            job.work(self);
        }
    }

    /// Waits for a job that this worker has not seen; `None` to end.
    fn next_job(&self, n_seen: &mut u64) -> Option<Arc<Job>> {
        for _ in 0..SPINS {
            if self.n_jobs.load(Ordering::Acquire) != *n_seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut job = lock(&self.job);
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let n_jobs = self.n_jobs.load(Ordering::Acquire);
            if n_jobs != *n_seen
                && let Some(job) = job.as_ref()
            {
                *n_seen = n_jobs;
                return Some(Arc::clone(job));
            }
            *n_seen = n_jobs;
            self.n_parked.fetch_add(1, Ordering::SeqCst);
            job = self.job_posted.wait(job).unwrap_or_else(PoisonError::into_inner);
            self.n_parked.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wait_for(&self, job: &Job) {
        for _ in 0..SPINS {
            if job.is_done() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut finish = lock(&self.finish);
        // The one who ends the last task counts it and then looks at this; here it is set, and then
        // the tasks are counted. One of the two sees the other.
        self.caller_is_parked.store(true, Ordering::SeqCst);
        while !job.is_done() {
            finish = self.job_finished.wait(finish).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_is_parked.store(false, Ordering::SeqCst);
    }
}

impl Job {
    fn is_done(&self) -> bool {
        self.n_done.load(Ordering::SeqCst) == self.n_tasks
    }

    /// Takes tasks until none is left.
    fn work(&self, board: &Board) {
        IN_TASK.set(true);
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.n_tasks {
                break;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.task)(i))) {
                lock(&self.panic).get_or_insert(panic);
            }
            let is_last = self.n_done.fetch_add(1, Ordering::SeqCst) + 1 == self.n_tasks;
            if is_last && board.caller_is_parked.load(Ordering::SeqCst) {
                let _finish = lock(&board.finish);
                board.job_finished.notify_all();
            }
        }
        IN_TASK.set(false);
    }
}

/// The mutexes here guard values that are whole after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`]; `None` while another thread has it.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn chunk(i: usize, len: usize, end: usize) -> Range<usize> {
    (i * len).min(end)..((i + 1) * len).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for n_threads in [1, 2, 3, 7] {
            let pool = Pool::new(n_threads);
            assert_eq!(pool.n_threads(), n_threads);
            for n_tasks in [0, 1, 2, 100] {
                let mut counts = vec![0_u32; n_tasks];
                for _ in 0..20 {
                    pool.chunks(&mut counts, 1, |_, count| count[0] += 1);
                }
                assert_eq!(counts, vec![20; n_tasks]);
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|i| assert_ne!(i, 17, "task seventeen"));
        }));
        assert!(caught.is_err());
        let mut done = vec![false; 50];
        pool.chunks(&mut done, 1, |_, done| done[0] = true);
        assert!(done.iter().all(|&d| d));
    }

    #[test]
    fn a_job_inside_a_task_does_not_wait_for_itself() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 20);
    }

    /// The job of one thread waits for the job of another, which finds the workers busy.
    #[test]
    fn a_thread_that_finds_the_workers_busy_works_alone() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(2, &|_| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pool.run(7, &|_| {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                });
            });
        });
        assert_eq!(count.into_inner(), 14);
    }

    #[test]
    fn workers_that_have_parked_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let mut done = vec![0; 8];
            pool.chunks(&mut done, 2, |i, chunk| chunk.fill(i));
            assert_eq!(done, [0, 0, 1, 1, 2, 2, 3, 3]);
        }
    }

    /// Hangs if a wake-up is lost: pauses of every length around the end of the spinning.
    #[test]
    fn no_job_is_missed_by_those_who_are_about_to_park() {
        let pool = Pool::new(3);
        let mut done = [0_u32; 3];
        for i in 0..3000_u32 {
            let slow = std::time::Duration::from_micros(u64::from(i % 300));
            match i % 4 {
                0 => std::thread::sleep(slow),
                1 => pool.run(2, &|task| {
                    if task == 1 {
                        std::thread::sleep(slow);
                    }
                }),
                _ => {}
            }
            pool.chunks(&mut done, 1, |_, done| done[0] += 1);
        }
        assert_eq!(done, [3000; 3]);
    }
}
