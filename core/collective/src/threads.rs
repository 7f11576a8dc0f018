//! Ranks as threads of one process: everything that is built on a collective can be tested without a
//! launcher, and what fails at every call.

use forgelm_sdk::Failed;
use forgelm_sdk::collective::Collective;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A meeting that took place.
#[derive(Debug)]
struct Meeting {
    /// What each rank brought.
    brought: Arc<Vec<Vec<u8>>>,
    number: u64,
}

/// Where some threads meet. A meeting takes place when everyone has come with something.
#[derive(Debug)]
struct Place {
    n_ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Meetings that took place.
    n_held: u64,
    /// What each rank brings to the next one.
    brought: Vec<Option<Vec<u8>>>,
    /// What was brought to the last one.
    held: Arc<Vec<Vec<u8>>>,
    /// A rank left or called the whole thing off: what to say.
    called_off: Option<String>,
    /// Groups that were split off, by the meeting and the color.
    split: BTreeMap<(u64, u32), Arc<Place>>,
}

impl Place {
    fn new(n_ranks: usize) -> Arc<Self> {
        let state = State { brought: vec![None; n_ranks], ..State::default() };
        Arc::new(Self { n_ranks, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings something and waits for the others.
    fn meet(&self, rank: usize, bytes: Vec<u8>, deadline: Duration) -> Result<Meeting, Failed> {
        let mut state = self.state();
        let number = state.n_held;
        state.brought[rank] = Some(bytes);
        if state.brought.iter().all(Option::is_some) {
            let brought = state.brought.iter_mut().map(|of| of.take().unwrap_or_default());
            state.held = Arc::new(brought.collect());
            state.n_held += 1;
            self.changed.notify_all();
        }
        let is_waited = |state: &mut State| state.n_held == number && state.called_off.is_none();
        let waited = self.changed.wait_timeout_while(state, deadline, is_waited);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.n_held > number {
            // Nobody can hold the next one before this rank comes to it.
            return Ok(Meeting { brought: Arc::clone(&state.held), number });
        }
        if let Some(why) = &state.called_off {
            return Err(Failed::new(why.clone()));
        }
        let missing = (0..self.n_ranks).filter(|&of| state.brought[of].is_none());
        let missing: Vec<String> = missing.map(|of| of.to_string()).collect();
        Err(Failed::new(format!("no sign of rank {} for {deadline:?}", missing.join(", "))))
    }

    fn call_off(&self, why: String) {
        self.state().called_off.get_or_insert(why);
        self.changed.notify_all();
    }
}

/// One of some ranks that are threads.
#[derive(Debug)]
pub struct Thread {
    place: Arc<Place>,
    rank: usize,
    /// Calls until one fails, where one shall.
    n_good_calls: Option<u64>,
}

/// A collective for each of `n_ranks` threads.
#[must_use]
pub fn ranks(n_ranks: usize) -> Vec<Thread> {
    let place = Place::new(n_ranks);
    (0..n_ranks)
        .map(|rank| Thread { place: Arc::clone(&place), rank, n_good_calls: None })
        .collect()
}

impl Thread {
    /// The same, but that it fails at the call after `n_good_calls`.
    #[must_use]
    pub fn failing_after(mut self, n_good_calls: u64) -> Self {
        self.n_good_calls = Some(n_good_calls);
        self
    }

    fn meet(&mut self, bytes: Vec<u8>, deadline: Duration) -> Result<Meeting, Failed> {
        match &mut self.n_good_calls {
            Some(0) => return Err(Failed::new("failed as the test wants it")),
            Some(n) => *n -= 1,
            None => {}
        }
        self.place.meet(self.rank, bytes, deadline)
    }
}

/// A rank that is gone is missed at once, as a launcher ends a job that lost a process.
impl Drop for Thread {
    fn drop(&mut self) {
        self.place.call_off(format!("rank {} has left", self.rank));
    }
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.place.n_ranks
    }

    fn library(&self) -> String {
        "threads".to_owned()
    }

    fn all_to_all(
        &mut self,
        sent: &[u8],
        sent_bytes: &[usize],
        received: &mut [u8],
        received_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed> {
        // The sizes go first, so that each rank finds its part.
        let sizes = sent_bytes.iter().flat_map(|&n| (n as u64).to_le_bytes());
        let bytes: Vec<u8> = sizes.chain(sent.iter().copied()).collect();
        let Meeting { brought: held, .. } = self.meet(bytes, deadline)?;
        let mut rest = received;
        for (from, &expected) in held.iter().zip(received_bytes) {
            let (sizes, data) = from.split_at(8 * self.place.n_ranks);
            let size = |chunk: &[u8]| {
                chunk.iter().rev().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte))
            };
            let sizes: Vec<usize> = sizes.chunks(8).map(size).collect();
            let start: usize = sizes[..self.rank].iter().sum();
            let part = &data[start..start + sizes[self.rank]];
            if part.len() != expected {
                return Err(Failed::argument(format!("{} bytes, not {expected}", part.len())));
            }
            let (own, behind) = rest.split_at_mut(expected);
            own.copy_from_slice(part);
            rest = behind;
        }
        Ok(())
    }

    fn all_gather(
        &mut self,
        own: &[u8],
        all: &mut [u8],
        n_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed> {
        let Meeting { brought: held, .. } = self.meet(own.to_vec(), deadline)?;
        if held.iter().map(Vec::len).ne(n_bytes.iter().copied()) {
            return Err(Failed::argument("other sizes than expected"));
        }
        all.copy_from_slice(&held.concat());
        Ok(())
    }

    fn broadcast(
        &mut self,
        bytes: &mut [u8],
        root: usize,
        deadline: Duration,
    ) -> Result<(), Failed> {
        let own = if self.rank == root { bytes.to_vec() } else { Vec::new() };
        let Meeting { brought: held, .. } = self.meet(own, deadline)?;
        if held[root].len() != bytes.len() {
            return Err(Failed::argument("another size than expected"));
        }
        bytes.copy_from_slice(&held[root]);
        Ok(())
    }

    fn barrier(&mut self, deadline: Duration) -> Result<(), Failed> {
        self.meet(Vec::new(), deadline).map(drop)
    }

    fn split(&mut self, color: u32, deadline: Duration) -> Result<Box<dyn Collective>, Failed> {
        let Meeting { brought: held, number } =
            self.meet(color.to_le_bytes().to_vec(), deadline)?;
        let own = color.to_le_bytes();
        let is_own = |of: &&Vec<u8>| of.as_slice() == own;
        let n_ranks = held.iter().filter(is_own).count();
        let rank = held[..self.rank].iter().filter(is_own).count();
        let mut state = self.place.state();
        let place = state.split.entry((number, color)).or_insert_with(|| Place::new(n_ranks));
        Ok(Box::new(Self { place: Arc::clone(place), rank, n_good_calls: None }))
    }

    fn abort(&mut self, exit_code: i32) {
        self.place.call_off(format!("rank {} ended the run with {exit_code}", self.rank));
    }
}
