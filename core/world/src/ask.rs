//! Programs of the machine that answer a question about themselves and end: `mpirun --version`.

use crate::signing_program::read_some;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes of an answer that are read: all macros of a header are fewer.
const ANSWER_MAX: u64 = 1 << 20;

/// Starts a program and gives what it printed on its standard output.
///
/// # Errors
/// If it cannot be started, fails, or does not end in time; it is killed then.
pub fn run(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = started.map_err(|error| format!("cannot be started: {error}"))?;
    let answer = read_some(child.stdout.take(), ANSWER_MAX).recv_timeout(DEADLINE);
    if answer.is_err() {
        // It may be gone by now, which is as good.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match answer {
        Err(_) => Err(format!("did not answer in {} seconds", DEADLINE.as_secs())),
        Ok(_) if !status.success() => Err(format!("ended with {status}")),
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::path::Path;

    #[test]
    fn an_answer_is_what_was_printed_by_a_program_that_worked() {
        let sh = |script| run(Path::new("sh"), &["-c", script]);
        assert_eq!(sh("echo 4.1; echo no >&2").as_deref(), Ok("4.1\n"));
        assert_eq!(sh("echo 4.1; exit 3").unwrap_err(), "ended with exit status: 3");
        let error = run(Path::new("/nowhere/mpirun"), &[]).unwrap_err();
        assert!(error.starts_with("cannot be started: "), "{error}");
    }
}
