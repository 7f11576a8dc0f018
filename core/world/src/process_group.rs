//! A command in a process group of its own (`forgelm launch`): started, looked at, sent signals, and
//! ended with everything that it left in the group.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};

/// The command, and what it starts.
#[derive(Debug)]
pub struct ProcessGroup(Child);

impl ProcessGroup {
    /// Starts a command with these variables in its environment, or without them. It reads nothing:
    /// one that is not in the foreground of a terminal would be stopped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(words: &[OsString], variables: &[(&str, Option<&OsStr>)]) -> Result<Self, String> {
        let Some((program, arguments)) = words.split_first() else {
            return Err("the command is empty".to_owned());
        };
        let mut command = Command::new(program);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let started = command.args(arguments).stdin(Stdio::null()).process_group(0).spawn();
        let shown = program.to_string_lossy();
        Ok(Self(started.map_err(|error| format!("`{shown}` cannot be started: {error}"))?))
    }

    /// The number of the group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal to all of it.
    pub fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            // It may have ended by now.
            let _ = kill_process_group(Pid::from_child(&self.0), signal);
        }
    }

    /// The command's exit code, 128 and its number if a signal ended it, once it has ended. What is left
    /// of the group ends with it.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> io::Result<Option<u8>> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(Pid::from_child(&self.0)), look)?.is_none() {
            return Ok(None);
        }
        // Until it is waited for, its number is nobody else's.
        self.signal(Signal::KILL.as_raw());
        let status = self.0.wait()?;
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        Ok(Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shell(script: &str) -> ProcessGroup {
        let words = ["sh", "-c", script].map(OsString::from);
        ProcessGroup::start(&words, &[("GREETING", Some(OsStr::new("hello")))]).unwrap()
    }

    fn code(mut group: ProcessGroup) -> u8 {
        loop {
            if let Some(code) = group.ended().unwrap() {
                return code;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_command_ends_with_its_code_or_its_signal() {
        assert_eq!(code(shell("test $GREETING = hello && exit 3")), 3);
        assert_eq!(code(shell("kill -9 $$")), 137);
        let group = shell("sleep 600");
        group.signal(Signal::TERM.as_raw());
        assert_eq!(code(group), 143);
        assert!(ProcessGroup::start(&[OsString::from("/nowhere/mpirun")], &[]).is_err());
        assert!(ProcessGroup::start(&[], &[]).is_err());
    }
}
