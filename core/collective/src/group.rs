//! The processes of a run, as the thread that trains sees them.

use crate::line::Line;
use crate::{Alone, CollectiveError};
use forgelm_sdk::OptionsError;
use forgelm_sdk::collective::Collective;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The process that leads: it tells the others what to do next.
const LEADER: usize = 0;

/// How processes wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a process may give no sign before the others give up.
    pub deadline: Duration,
    /// How often the leader gives a sign while it has nothing to say.
    pub heartbeat: Duration,
}

impl Settings {
    /// Signs are given four times as often as they must come.
    #[must_use]
    pub fn with_deadline(deadline: Duration) -> Self {
        Self { deadline, heartbeat: deadline / 4 }
    }
}

/// The processes of a run. Every one makes the same calls in the same order; a thread of its own
/// carries them out, one after the other.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    n_ranks: usize,
    library: String,
    n_sent: Arc<AtomicU64>,
    tasks: Sender<Task>,
    /// The others wait to be told something.
    are_told: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Work = dyn FnOnce(&mut Line) + Send;

/// What the leader does from time to time while the others wait for it.
type Sign = dyn FnMut(&mut Line) -> Result<(), CollectiveError> + Send;

enum Task {
    Work(Box<Work>),
    /// Of the leader: the others wait for it, or do so no more.
    Signs(Option<Box<Sign>>),
    End,
}

/// Some processes of a group, or all of them, for calls that only these make. The group's thread
/// carries them out, between those of the group.
#[derive(Clone, Debug)]
pub struct Members {
    rank: usize,
    n_ranks: usize,
    /// Which of the groups that were split off; the whole group otherwise.
    part: Option<usize>,
    /// Their ranks in the whole group.
    ranks: Arc<[usize]>,
    tasks: Sender<Task>,
    are_told: Arc<AtomicBool>,
}

impl Members {
    /// This process among them.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many they are.
    #[must_use]
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// The rank of each in the whole group.
    #[must_use]
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// What each has, by rank.
    ///
    /// # Errors
    /// As [`Group::all_gather_values`].
    pub fn all_gather_values<T: Serialize + DeserializeOwned>(
        &self,
        own: &T,
    ) -> Result<Vec<T>, CollectiveError> {
        let own = to_bytes(own);
        let all = self.start(move |line| line.all_gather(&own)).wait()?;
        all.iter().map(|bytes| value_of(self.rank, bytes)).collect()
    }

    /// Of the leader, among all processes: tells the others something, as [`Group::tell`] does, if
    /// they wait to be told something; whether they did.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn call(&self, command: &[u8]) -> Result<bool, CollectiveError> {
        if !self.are_told.load(Ordering::Relaxed) {
            return Ok(false);
        }
        tell(&self.tasks, &self.are_told, command.to_vec())?;
        Ok(true)
    }

    /// Of the leader, among all processes: see [`Group::told`].
    pub fn told(&self) {
        told(&self.tasks, &self.are_told, self.n_ranks);
    }

    /// Of the leader: while there is nothing else to do, this is done from time to time, so that the
    /// others know that it lives.
    pub fn give_signs(
        &self,
        sign: impl FnMut(&mut Line) -> Result<(), CollectiveError> + Send + 'static,
    ) {
        // As everywhere here: a thread that is gone answers nobody.
        let _ = self.tasks.send(Task::Signs(Some(Box::new(sign))));
    }

    /// Of the leader: it gives no signs any more.
    pub fn give_no_signs(&self) {
        let _ = self.tasks.send(Task::Signs(None));
    }

    /// As [`Group::start`], for a call of these processes.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Line) -> Result<T, CollectiveError> + Send + 'static,
    ) -> Pending<T> {
        let part = self.part;
        start(&self.tasks, move |line| match part {
            None => work(line),
            Some(part) => work(line.part(part)?),
        })
    }
}

fn tell(
    tasks: &Sender<Task>,
    are_told: &AtomicBool,
    command: Vec<u8>,
) -> Result<(), CollectiveError> {
    are_told.store(false, Ordering::Relaxed);
    let _ = tasks.send(Task::Signs(None));
    let told = start(tasks, move |line| {
        let mut command = command;
        exchange_signs(line, Some(command.len()))?;
        line.broadcast(&mut command, LEADER)
    });
    told.wait()
}

fn told(tasks: &Sender<Task>, are_told: &AtomicBool, n_ranks: usize) {
    if n_ranks > 1 {
        are_told.store(true, Ordering::Relaxed);
        let sign = |line: &mut Line| exchange_signs(line, None).map(drop);
        let _ = tasks.send(Task::Signs(Some(Box::new(sign))));
    }
}

fn start<T: Send + 'static>(
    tasks: &Sender<Task>,
    work: impl FnOnce(&mut Line) -> Result<T, CollectiveError> + Send + 'static,
) -> Pending<T> {
    let (sender, receiver) = channel();
    // A thread that is gone answers nobody, which is what is seen; and who asked may have given up.
    let _ = tasks.send(Task::Work(Box::new(move |line| {
        let _ = sender.send(work(line));
    })));
    Pending(receiver)
}

/// What a call gives, once it has come.
#[derive(Debug)]
#[must_use = "a failure would pass unseen"]
pub struct Pending<T>(Receiver<Result<T, CollectiveError>>);

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// If the processes could not do it.
    pub fn wait(self) -> Result<T, CollectiveError> {
        self.0.recv().unwrap_or(Err(CollectiveError::Ended))
    }
}

impl Group {
    /// Opens a collective on the group's thread.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(
        open: impl FnOnce() -> Result<Box<dyn Collective>, OptionsError> + Send + 'static,
        settings: Settings,
    ) -> Result<Self, CollectiveError> {
        let (tasks, receiver) = channel();
        let (opened, answer) = channel();
        let n_sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&n_sent);
        let work = move || match open() {
            Err(error) => {
                // Who asked may be gone: then nobody wants to know.
                let _ = opened.send(Err(CollectiveError::Open(error.to_string())));
            }
            Ok(collective) => {
                let line = Line::new(collective, settings.deadline, counter);
                let _ = opened.send(Ok((line.rank(), line.n_ranks(), line.library())));
                serve(line, &receiver, settings.heartbeat);
            }
        };
        let builder = std::thread::Builder::new().name("collective".to_owned());
        let thread =
            builder.spawn(work).map_err(|error| CollectiveError::Open(error.to_string()))?;
        let answer = answer.recv().unwrap_or(Err(CollectiveError::Ended));
        let (rank, n_ranks, library) = answer?;
        let are_told = Arc::default();
        Ok(Self { rank, n_ranks, library, n_sent, tasks, are_told, thread: Some(thread) })
    }

    /// A group of this process alone.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn alone() -> Result<Self, CollectiveError> {
        let settings = Settings::with_deadline(Duration::from_secs(3600));
        Self::open(|| Ok(Box::new(Alone)), settings)
    }

    /// This process.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes.
    #[must_use]
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Whether this process tells the others what to do.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.rank == LEADER
    }

    /// What carries the bytes.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Bytes that this process has sent to others.
    #[must_use]
    pub fn n_bytes_sent(&self) -> u64 {
        self.n_sent.load(Ordering::Relaxed)
    }

    /// Counts bytes that this process has sent to others by other means than the group's thread.
    pub fn count_sent(&self, n_bytes: usize) {
        self.n_sent.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// Has the group's thread do something after everything that was asked for before.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Line) -> Result<T, CollectiveError> + Send + 'static,
    ) -> Pending<T> {
        start(&self.tasks, work)
    }

    fn send(&self, task: Task) {
        // A thread that is gone answers nobody, which is what is seen.
        let _ = self.tasks.send(task);
    }

    /// All processes.
    #[must_use]
    pub fn members(&self) -> Members {
        self.members_as(None, self.rank, (0..self.n_ranks).collect())
    }

    fn members_as(&self, part: Option<usize>, rank: usize, ranks: Arc<[usize]>) -> Members {
        let (tasks, are_told) = (self.tasks.clone(), Arc::clone(&self.are_told));
        Members { rank, n_ranks: ranks.len(), part, ranks, tasks, are_told }
    }

    /// The processes that give the same color; each gives one.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn members_with(&self, color: u32) -> Result<Members, CollectiveError> {
        let (part, ranks) = self.start(move |line| line.split_off(color)).wait()?;
        let rank = ranks.iter().position(|&rank| rank == self.rank).unwrap_or_default();
        Ok(self.members_as(Some(part), rank, ranks.into()))
    }

    /// What each process has, by rank.
    ///
    /// # Errors
    /// If a process gives no sign before the deadline, or the library fails; so below.
    pub fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.start(move |line| line.all_gather(&own)).wait()
    }

    /// [`Group::all_gather`] of values.
    ///
    /// # Errors
    /// As [`Group::all_gather`], or if what came is no such value; so below.
    pub fn all_gather_values<T: Serialize + DeserializeOwned>(
        &self,
        own: &T,
    ) -> Result<Vec<T>, CollectiveError> {
        self.members().all_gather_values(own)
    }

    /// [`Group::tell`] of a value.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn tell_value(&self, command: &impl Serialize) -> Result<(), CollectiveError> {
        self.tell(to_bytes(command))
    }

    /// [`Group::listen`] for a value.
    ///
    /// # Errors
    /// As [`Group::all_gather_values`].
    pub fn listen_for<T: DeserializeOwned>(&self) -> Result<T, CollectiveError> {
        value_of(self.rank, &self.listen()?)
    }

    /// See [`Line::all_gather_ranges`].
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn all_gather_ranges(
        &self,
        own: Vec<f32>,
        ranges: Vec<Range<usize>>,
    ) -> Result<Vec<f32>, CollectiveError> {
        self.start(move |line| line.all_gather_ranges(&own, &ranges)).wait()
    }

    /// Of the leader: tells the others what to do next. They are in [`Group::listen`], or come there.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn tell(&self, command: Vec<u8>) -> Result<(), CollectiveError> {
        tell(&self.tasks, &self.are_told, command)
    }

    /// Of the leader: what was told is done, and the others wait for the next command. Signs of life
    /// are sent to them from now on.
    pub fn told(&self) {
        told(&self.tasks, &self.are_told, self.n_ranks);
    }

    /// Of the others: waits for the next command. The leader may take as long as it wants, as long as
    /// its process lives.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn listen(&self) -> Result<Vec<u8>, CollectiveError> {
        let heard = self.start(|line| {
            loop {
                if let Some(n_bytes) = exchange_signs(line, None)? {
                    let mut command = vec![0; n_bytes];
                    line.broadcast(&mut command, LEADER)?;
                    return Ok(command);
                }
            }
        });
        heard.wait()
    }

    /// Ends every process of the run, this one perhaps not among them.
    pub fn abort(&self, exit_code: i32) {
        let aborted = self.start(move |line| {
            line.abort(exit_code);
            Ok(())
        });
        // The process ends in any case.
        let _ = aborted.wait();
    }

    /// Leaves, after the last call that all made together.
    ///
    /// # Errors
    /// If a process does not come to its end.
    pub fn end(mut self) -> Result<(), CollectiveError> {
        self.send(Task::Signs(None));
        let ended = self.start(Line::barrier).wait();
        self.send(Task::End);
        if let Some(thread) = self.thread.take().filter(|_| ended.is_ok()) {
            // The thread reports what fails; a panic of it is a bug that its message tells.
            let _ = thread.join();
        }
        ended
    }
}

fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data is serializable")
}

fn value_of<T: DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T, CollectiveError> {
    let nonsense =
        |error: serde_json::Error| CollectiveError::Nonsense { rank, what: error.to_string() };
    serde_json::from_slice(bytes).map_err(nonsense)
}

/// The signs that processes give each other between two commands: the leader says whether one
/// follows, and how long it is.
fn exchange_signs(
    line: &mut Line,
    n_bytes: Option<usize>,
) -> Result<Option<usize>, CollectiveError> {
    const NOTHING: u64 = u64::MAX;
    let own = n_bytes.map_or(NOTHING, |n| n as u64).to_le_bytes();
    let all = line.all_gather_known(&own, &vec![8; line.n_ranks()])?;
    let of_leader = all.first_chunk().copied().map_or(NOTHING, u64::from_le_bytes);
    if of_leader == NOTHING {
        return Ok(None);
    }
    let n = usize::try_from(of_leader).map_err(|_| CollectiveError::Nonsense {
        rank: line.rank(),
        what: format!("a command of {of_leader} bytes"),
    })?;
    Ok(Some(n))
}

/// The group's thread.
fn serve(mut line: Line, tasks: &Receiver<Task>, heartbeat: Duration) {
    let mut sign: Option<Box<Sign>> = None;
    loop {
        let task = if let Some(sign) = sign.as_mut().filter(|_| line.failed().is_none()) {
            match tasks.recv_timeout(heartbeat) {
                Ok(task) => task,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // The line remembers a failure, and who asks next is told.
                    let _ = sign(&mut line);
                    continue;
                }
            }
        } else {
            match tasks.recv() {
                Ok(task) => task,
                Err(_) => break,
            }
        };
        match task {
            Task::Signs(given) => sign = given,
            Task::Work(work) => work(&mut line),
            Task::End => break,
        }
    }
}
