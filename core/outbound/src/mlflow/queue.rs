//! A run's numbers on their way to a server.
//!
//! **Invariants:** nothing here waits for the server but [`Queue::finish`], and that no longer than it
//! is told to; the queue is bounded; numbers that belong together are sent together, and no more
//! often than once a second.

use super::client::Server;
use super::payload::METRICS_MAX;
use super::{About, Ids, Metric, Status};
use forgelm_artifact::Clock;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Numbers that wait, at most: what comes then is lost, and told.
pub const QUEUE_MAX: usize = 100_000;
/// Between two requests with numbers.
const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    about: Option<(About, i64)>,
    metrics: VecDeque<Metric>,
    end: Option<(Status, i64)>,
    /// The server's names for the run, for whoever asks once.
    ids: Option<Ids>,
    is_closed: bool,
    is_done: bool,
    problems: Vec<String>,
    n_lost: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `until` holds, `at_most` so long.
    fn wait(&self, at_most: Duration, until: impl Fn(&State) -> bool) {
        let start = self.clock.monotonic();
        let mut state = self.lock();
        while !until(&state) {
            let waited = self.clock.monotonic().saturating_sub(start);
            let Some(left) = at_most.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return;
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What went wrong since it was last asked.
    pub problems: Vec<String>,
    /// Numbers that did not arrive.
    pub n_lost: u64,
    /// The server's names for the run, where nobody had asked for them.
    pub ids: Option<Ids>,
}

/// The queue, with its thread.
pub struct Queue {
    shared: Arc<Shared>,
}

impl Queue {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(server: Server, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, changed: Condvar::new(), clock });
        let worker = Worker { server, shared: Arc::clone(&shared) };
        thread::Builder::new().name("mlflow".to_owned()).spawn(move || worker.work())?;
        Ok(Self { shared })
    }

    /// The run begins.
    pub fn begin(&self, about: About, at_ms: i64) {
        self.shared.lock().about = Some((about, at_ms));
        self.shared.changed.notify_all();
    }

    /// Takes numbers; they go when they can.
    pub fn log(&self, metrics: impl IntoIterator<Item = Metric>) {
        let mut state = self.shared.lock();
        for metric in metrics {
            if state.metrics.len() < QUEUE_MAX {
                state.metrics.push_back(metric);
            } else {
                state.n_lost += 1;
            }
        }
        self.shared.changed.notify_all();
    }

    /// The run ended; what waits goes first.
    pub fn end(&self, status: Status, at_ms: i64) {
        self.shared.lock().end = Some((status, at_ms));
        self.shared.changed.notify_all();
    }

    /// The server's names for the run, once, when they are known.
    #[must_use]
    pub fn ids(&self) -> Option<Ids> {
        self.shared.lock().ids.take()
    }

    /// What went wrong since this was last asked.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().problems)
    }

    /// Waits until all is told, `at_most` so long; what is known then.
    #[must_use]
    pub fn finish(self, at_most: Duration) -> Told {
        self.shared.wait(at_most, |state| state.is_done);
        let mut state = self.shared.lock();
        state.is_closed = true;
        if !state.is_done {
            state.problems.push(format!("not told {} s after the end", at_most.as_secs()));
        }
        let n_lost = state.n_lost + state.metrics.len() as u64;
        self.shared.changed.notify_all();
        Told { problems: std::mem::take(&mut state.problems), n_lost, ids: state.ids.take() }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

struct Worker {
    server: Server,
    shared: Arc<Shared>,
}

impl Worker {
    fn work(&self) {
        self.shared.wait(Duration::MAX, |state| state.about.is_some() || state.is_closed);
        let about = self.shared.lock().about.take();
        if let Some((about, at_ms)) = about {
            self.tell(&about, at_ms);
        }
        self.shared.lock().is_done = true;
        self.shared.changed.notify_all();
    }

    fn tell(&self, about: &About, at_ms: i64) {
        let ids = match self.server.begin(about, at_ms, &|pause| self.pause(pause)) {
            Ok(ids) => ids,
            Err(error) => {
                self.problem(format!("there is no run on the server: {error}"));
                // Nothing can be told any more; what comes is counted.
                self.shared.wait(Duration::MAX, |state| state.end.is_some() || state.is_closed);
                return;
            }
        };
        self.shared.lock().ids = Some(ids.clone());
        while let Some(some) = self.next() {
            if let Err(error) = self.server.log(&ids, &some, &|pause| self.pause(pause)) {
                self.shared.lock().n_lost += some.len() as u64;
                self.problem(format!("numbers were not delivered: {error}"));
            }
            self.shared.wait(BETWEEN, |state| state.end.is_some() || state.is_closed);
        }
        let end = self.shared.lock().end;
        if let Some((status, at_ms)) = end
            && let Err(error) = self.server.end(&ids, status, at_ms, &|pause| self.pause(pause))
        {
            self.problem(format!("the end was not delivered: {error}"));
        }
    }

    /// Numbers that wait; none when the run ended or nobody waits.
    fn next(&self) -> Option<Vec<Metric>> {
        let is_due =
            |state: &State| !state.metrics.is_empty() || state.end.is_some() || state.is_closed;
        self.shared.wait(Duration::MAX, is_due);
        let mut state = self.shared.lock();
        if state.is_closed || state.metrics.is_empty() {
            return None;
        }
        let n = state.metrics.len().min(METRICS_MAX);
        Some(state.metrics.drain(..n).collect())
    }

    /// Waits before another try; false when nobody waits for it any more.
    fn pause(&self, pause: Duration) -> bool {
        self.shared.wait(pause, |state| state.is_closed);
        !self.shared.lock().is_closed
    }

    fn problem(&self, text: String) {
        self.shared.lock().problems.push(text);
    }
}
