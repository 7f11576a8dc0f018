//! A worker as a process: started, asked, watched and ended.

use super::WorkerProgram;
use super::memory::Memory;
use super::services;
use super::wire::{self, Answer, Ask, Say, Served};
use crate::host::{HostServices, level_of};
use forgelm_sdk::Failed;
use forgelm_sdk::evaluator::Services;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a waiting call looks whether work should stop.
const TICK: Duration = Duration::from_millis(50);

/// A worker that several instances call, one at a time.
pub(super) type Shared = Arc<Mutex<Worker>>;

/// A process, and the way to it.
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    received: wire::Frames,
    pub(super) memory: Memory,
    pub(super) services: Arc<HostServices>,
    silence_max: Duration,
    /// Why it is dead.
    ended: Option<String>,
}

impl Worker {
    pub(super) fn start(program: &WorkerProgram, services: Arc<HostServices>) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let memory = Memory::create()?;
        let child = Command::new(&program.program)
            .args(&program.args)
            .env_clear()
            .envs(program.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(memory.file().try_clone()?)))
            // the signals of a terminal are for the program, which then asks its workers to stop
            .process_group(0)
            .spawn()?;
        socket.set_read_timeout(Some(TICK))?;
        let (received, silence_max) = (wire::Frames::default(), program.silence_max);
        Ok(Self { child, socket, received, memory, services, silence_max, ended: None })
    }

    /// Asks, hands on what the plugin says meanwhile, and waits for the answer.
    pub(super) fn ask(&mut self, question: &Ask) -> Result<Answer, String> {
        self.ask_over(question, &Services::default())
    }

    /// [`Worker::ask`], with services that the plugin may use meanwhile.
    pub(super) fn ask_over(
        &mut self,
        question: &Ask,
        model: &Services<'_>,
    ) -> Result<Answer, String> {
        if let Some(ended) = &self.ended {
            return Err(format!("its worker is gone: {ended}"));
        }
        match wire::send(&self.socket, question) {
            // What it said before it went comes first.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(self.kill(&format!("its worker cannot be asked: {error}"))),
        }
        // counted in ticks, so that no clock is needed
        let mut silence = Duration::ZERO;
        loop {
            self.memory.set_stop((self.services.stop)());
            match self.received.next(&self.socket) {
                Ok(None) => {
                    // A child of its own may hold its end open.
                    if !matches!(self.child.try_wait(), Ok(None)) {
                        return Err(self.gone());
                    }
                    // As for its own services in the program: the plugin waits for them.
                    silence = if self.memory.is_served() { Duration::ZERO } else { silence + TICK };
                    if silence >= self.silence_max {
                        return Err(self.kill(&format!(
                            "no sign of life for {:?}, so its worker was killed\n  hint: long work asks \
                             `is_cancelled` and reports `progress`",
                            self.silence_max
                        )));
                    }
                }
                Ok(Some(said)) => {
                    silence = Duration::ZERO;
                    match said {
                        Say::Log { level, target, message } => {
                            (self.services.log)(level_of(level), &target, &message);
                        }
                        Say::Progress { event } => (self.services.progress)(&event),
                        Say::Wish(wish) => self.answer(&services::serve(model, wish))?,
                        Say::Answer(answer) => return Ok(answer),
                        Say::Failed(why) => return Err(why),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.kill(&format!("its worker said something broken: {error}")));
                }
                Err(_) => return Err(self.gone()),
            }
        }
    }

    /// Answers a wish of the worker.
    fn answer(&mut self, served: &Served) -> Result<(), String> {
        let sent = match wire::send(&self.socket, served) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let too_long = Failed::argument("the answers are too long to be told");
                wire::send(&self.socket, &Served::from(too_long))
            }
            sent => sent,
        };
        match sent {
            Ok(()) => Ok(()),
            // How it ended comes next.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(self.kill(&format!("its worker cannot be answered: {error}"))),
        }
    }

    /// Whether it can be asked.
    pub(super) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    /// The worker closed its end: how it died.
    fn gone(&mut self) -> String {
        // One that is ending keeps its own status; one that only closed its end is ended.
        self.kill_group();
        let ended = match self.child.wait() {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("killed by signal {signal}{}", signal_name(signal)),
                (None, code) => format!("it ended the process with code {}", code.unwrap_or(-1)),
            },
            Err(error) => error.to_string(),
        };
        self.ended = Some(ended.clone());
        format!("its worker died: {ended}")
    }

    fn kill(&mut self, why: &str) -> String {
        self.kill_group();
        // It may be waited for already.
        let _ = self.child.wait();
        self.ended = Some(why.to_owned());
        why.to_owned()
    }

    /// Ends the worker and whatever it started.
    fn kill_group(&self) {
        // It may be dead already.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Once it was waited for, its number may be another's.
        if self.is_alive() {
            self.kill("the program is done with it");
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic)",
        9 => " (kill)",
        11 => " (segmentation fault)",
        _ => "",
    }
}
