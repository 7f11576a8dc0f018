//! A queue with a thread of its own that delivers messages to one destination.
//!
//! **Invariants:** [`Courier::send`] never waits; the queue is bounded, and what does not fit is told
//! like what could not be delivered; the end waits no longer than it is told to.

use crate::destination::Destination;
use crate::guard::{Guard, GuardError, Post};
use crate::signed::{SIGNATURE, Signer, TIMESTAMP};
use forgelm_artifact::Clock;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Messages that wait, at most.
pub const QUEUE_MAX: usize = 64;
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where messages go, and how hard it is tried.
#[derive(Debug)]
pub struct Route {
    /// The client.
    pub guard: Guard,
    /// The address.
    pub destination: Destination,
    /// Tries after the first.
    pub n_retries: u32,
    /// Before the second try; each pause is twice the one before.
    pub first_pause: Duration,
    /// Headers of every message.
    pub headers: Vec<(String, String)>,
}

/// Something to deliver.
pub struct Message {
    /// What it is called in warnings.
    pub label: String,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// Signs it, where it is to be signed.
    pub signer: Option<Arc<Signer>>,
}

/// A message that did not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// The message.
    pub label: String,
    /// Scheme and host.
    pub destination: String,
    /// Times that it was tried.
    pub n_tries: u32,
    /// Why, without path, query or header.
    pub reason: String,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    /// The label of the message that is on its way.
    busy: Option<String>,
    is_closed: bool,
    undelivered: Vec<Undelivered>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue. Dropped without [`Courier::finish`], it gives up what still waits.
pub struct Courier {
    shared: Arc<Shared>,
    destination: String,
    clock: Arc<dyn Clock>,
}

impl Courier {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(route: Route, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let destination = route.destination.to_string();
        let worker = Worker { route, shared: Arc::clone(&shared), clock: Arc::clone(&clock) };
        thread::Builder::new().name("courier".to_owned()).spawn(move || worker.work())?;
        Ok(Self { shared, destination, clock })
    }

    /// Takes a message; it goes when those before it are gone.
    pub fn send(&self, message: Message) {
        let mut state = self.shared.lock();
        if state.queue.len() >= QUEUE_MAX {
            let reason = format!("{QUEUE_MAX} messages wait before it");
            state.undelivered.push(self.undelivered_for(message.label, reason));
            return;
        }
        state.queue.push_back(message);
        self.shared.changed.notify_all();
    }

    fn undelivered_for(&self, label: String, reason: String) -> Undelivered {
        Undelivered { label, destination: self.destination.clone(), n_tries: 0, reason }
    }

    /// What failed since this was last asked.
    #[must_use]
    pub fn failures(&self) -> Vec<Undelivered> {
        std::mem::take(&mut self.shared.lock().undelivered)
    }

    /// Waits until everything is delivered or given up, `at_most` so long; what is left then is given
    /// up too.
    #[must_use]
    pub fn finish(self, at_most: Duration) -> Vec<Undelivered> {
        let start = self.clock.monotonic();
        let mut state = self.shared.lock();
        while state.busy.is_some() || !state.queue.is_empty() {
            let waited = self.clock.monotonic().saturating_sub(start);
            let Some(left) = at_most.checked_sub(waited).filter(|left| !left.is_zero()) else {
                break;
            };
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_closed = true;
        let mut undelivered = std::mem::take(&mut state.undelivered);
        let reason = format!("not delivered {} s after the end", at_most.as_secs());
        if let Some(label) = state.busy.take() {
            undelivered.push(self.undelivered_for(label, reason.clone()));
        }
        for message in state.queue.drain(..) {
            undelivered.push(self.undelivered_for(message.label, reason.clone()));
        }
        self.shared.changed.notify_all();
        undelivered
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

struct Worker {
    route: Route,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

impl Worker {
    fn work(&self) {
        while let Some(message) = self.next() {
            let failed = self.deliver(&message);
            let mut state = self.shared.lock();
            state.busy = None;
            state.undelivered.extend(failed);
            self.shared.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Message> {
        let mut state = self.shared.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(message) = state.queue.pop_front() {
                state.busy = Some(message.label.clone());
                return Some(message);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, message: &Message) -> Option<Undelivered> {
        let mut pause = self.route.first_pause;
        let mut n_tries = 0;
        loop {
            n_tries += 1;
            let error = match self.post(message) {
                Ok(()) => return None,
                Err(error) => error,
            };
            let is_given_up = n_tries > self.route.n_retries || !error.is_passing();
            if is_given_up || !self.wait(pause) {
                return Some(Undelivered {
                    label: message.label.clone(),
                    destination: self.route.destination.to_string(),
                    n_tries,
                    reason: error.to_string(),
                });
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn post(&self, message: &Message) -> Result<(), GuardError> {
        // The time is that of this try: a receiver refuses what is old.
        let timestamp = self.clock.utc().to_string();
        let signer = message.signer.as_ref();
        let signature = signer.map(|signer| signer.header(&timestamp, &message.body)).transpose();
        let signature = signature.map_err(GuardError::Unsigned)?;
        let mut headers = vec![("Content-Type", message.content_type)];
        headers.extend(self.route.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        if let Some(signature) = &signature {
            headers.extend([(TIMESTAMP, timestamp.as_str()), (SIGNATURE, signature.as_str())]);
        }
        let post = Post { headers: &headers, body: &message.body, answer_bytes_max: 0 };
        self.route.guard.post(&self.route.destination, post).map(|_| ())
    }

    /// Waits before the next try; false when nobody waits for it any more.
    fn wait(&self, pause: Duration) -> bool {
        let start = self.clock.monotonic();
        let mut state = self.shared.lock();
        while !state.is_closed {
            let waited = self.clock.monotonic().saturating_sub(start);
            let Some(left) = pause.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return true;
            };
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}
