//! `forgelm launch`: the site's launcher in a process group of its own, which ends when its run has, and is
//! started again when the run lost a process.
//!
//! MPI ends a job when one of its processes dies, but not always itself: after a cut cable its launcher may
//! stay for ever, although every process has ended. Rank 0 says in a file that its run is over.

use super::Context;
use crate::args::{LaunchArgs, LogLevel};
use crate::terminal;
use forgelm_artifact::write;
use forgelm_run::exit::Exit;
use forgelm_run::launch::{Ended, Next, RESUME, Restarts, STATUS, Status, newest_step};
use forgelm_world::passing_name;
use forgelm_world::process_group::ProcessGroup;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(50);
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// A job, start after start.
struct Launch<'a> {
    args: &'a LaunchArgs,
    status: PathBuf,
    /// The number of a signal that came and was not passed on yet.
    signal: Arc<AtomicUsize>,
    /// This program was asked to end.
    is_ending: bool,
    context: &'a mut Context,
}

/// Starts the command, as often as it takes; the exit code.
pub fn launch(args: &LaunchArgs, context: &mut Context) -> u8 {
    let status = args.status.clone().unwrap_or_else(|| passing_name("forgelm-launch"));
    let status = std::path::absolute(&status).unwrap_or(status);
    let signal = match terminal::last_signal() {
        Ok(signal) => signal,
        Err(error) => {
            let text = format!("signals cannot be passed on: {error}");
            return context.refused(Exit::Runtime, &text).code();
        }
    };
    let mut launch = Launch { args, status, signal, is_ending: false, context };
    let code = launch.run();
    if args.status.is_none() {
        // What does not last is taken away by the system in the end.
        let _ = write::remove_file(&launch.status);
    }
    code
}

impl Launch<'_> {
    fn run(&mut self) -> u8 {
        let mut restarts = Restarts::at_most(self.args.restarts);
        loop {
            // One of an earlier start would say that this one is over.
            if let Err(error) = write::remove_file(&self.status) {
                return self.context.failed(&error.into()).code();
            }
            let is_again = restarts.n_done() > 0;
            let code = match self.start(is_again) {
                Ok(mut job) => self.watch(&mut job),
                Err(text) => return self.context.refused(Exit::Config, &text).code(),
            };
            let status = Status::read(&self.status);
            let step = status.as_ref().and_then(|status| newest_step(&status.run_dir));
            let shown =
                step.map_or_else(String::new, |step| format!(", checkpoint of step {step}"));
            if self.is_ending {
                self.say(&format!("ended with {code}{shown}: it was asked to"));
                return code;
            }
            match restarts.after(Ended { code, status: status.as_ref(), step }) {
                Next::Stop(why) => {
                    self.say(&format!("ended with {code}{shown}: {why}"));
                    return code;
                }
                Next::Again(after) => {
                    let (n, of, seconds) = (restarts.n_done(), self.args.restarts, after.as_secs());
                    self.say(&format!(
                        "ended with {code}{shown}; restart {n} of {of} in {seconds} s"
                    ));
                    if !self.wait(after) {
                        return code;
                    }
                }
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.context.progress.line(LogLevel::Info, &format!("launch: {text}"));
    }

    fn start(&mut self, is_again: bool) -> Result<ProcessGroup, String> {
        let variables = [
            (STATUS, Some(self.status.as_os_str())),
            (RESUME, is_again.then_some(OsStr::new("1"))),
        ];
        let job = ProcessGroup::start(&self.args.command, &variables)?;
        let words = self.args.command.iter().map(|word| word.to_string_lossy());
        let shown = words.collect::<Vec<_>>().join(" ");
        let from = if is_again { ", from the newest checkpoint" } else { "" };
        self.say(&format!("started process group {}{from}: {shown}", job.id()));
        Ok(job)
    }

    /// Waits for the end of the command. Once rank 0 has said that its run is over, it has a grace to end
    /// by itself, and one to end when it is asked to.
    fn watch(&mut self, job: &mut ProcessGroup) -> u8 {
        let grace = Duration::from_secs(self.args.grace.into());
        // Counted in ticks, so that no clock is needed.
        let mut over = Duration::ZERO;
        loop {
            match job.ended() {
                Ok(Some(code)) => return self.code(code, over >= grace),
                Ok(None) => {}
                Err(error) => {
                    self.say(&format!("the system does not say what became of it: {error}"));
                    job.signal(SIGKILL);
                    return Exit::Runtime.code();
                }
            }
            self.pass_on(job);
            std::thread::sleep(TICK);
            let Some(code) = self.said() else { continue };
            let before = over;
            over += TICK;
            if before < grace && over >= grace {
                self.say(&format!(
                    "the run has ended with {code}, and its launcher hangs: SIGTERM"
                ));
                job.signal(SIGTERM);
            }
            if before < grace * 2 && over >= grace * 2 {
                self.say("the launcher did not end: SIGKILL");
                job.signal(SIGKILL);
            }
        }
    }

    /// The exit code of the run, once rank 0 has said that it is over.
    fn said(&self) -> Option<u8> {
        Status::read(&self.status)?.exit_code
    }

    /// What the command ended with, or the run if the command had to be ended.
    fn code(&self, code: u8, has_hung: bool) -> u8 {
        if has_hung { self.said().unwrap_or(code) } else { code }
    }

    /// The first signal goes to the command; the second ends it.
    fn pass_on(&mut self, job: &ProcessGroup) {
        let number = self.signal.swap(0, Ordering::Relaxed);
        let Ok(number @ 1..) = i32::try_from(number) else { return };
        if self.is_ending {
            self.say("asked to end again: SIGKILL");
            job.signal(SIGKILL);
        } else {
            self.say(&format!("asked to end: signal {number} is passed on"));
            job.signal(number);
        }
        self.is_ending = true;
    }

    /// Waits; whether nobody asked to end meanwhile.
    fn wait(&mut self, time: Duration) -> bool {
        let mut waited = Duration::ZERO;
        while waited < time {
            if self.signal.load(Ordering::Relaxed) != 0 {
                self.say("asked to end: there is no restart");
                return false;
            }
            std::thread::sleep(TICK);
            waited += TICK;
        }
        true
    }
}
