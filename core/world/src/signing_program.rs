//! The program of `signing.command`: the message on its standard input, the raw signature on its
//! standard output. Behind it may be a security module, a key service, another machine.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Longest wait for a signature.
const DEADLINE: Duration = Duration::from_secs(60);

/// Most bytes of an answer that are read: one more than a signature has, so that a longer answer is
/// told from one.
const ANSWER_MAX: u64 = 65;

/// Most bytes of its complaint that are shown.
const COMPLAINT_MAX: u64 = 2000;

/// Starts the program and waits for its answer.
///
/// # Errors
/// If it cannot be started, fails, or does not end in time; it is killed then.
pub fn run(words: &[String], message: &[u8]) -> Result<Vec<u8>, String> {
    run_for(words, message, DEADLINE)
}

fn run_for(words: &[String], message: &[u8], deadline: Duration) -> Result<Vec<u8>, String> {
    let Some((program, arguments)) = words.split_first() else {
        return Err("the command is empty".to_owned());
    };
    let mut command = Command::new(program);
    // It has its own way to its key, and none to ours.
    for name in ["FORGELM_SIGNING_KEY", "FORGELM_SIGNING_KEY_PASSPHRASE", "FORGELM_AUDIT_SECRET"] {
        command.env_remove(name);
    }
    let started = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|error| format!("`{program}` cannot be started: {error}"))?;
    let told = tell(&mut child, message.to_vec());
    let answer = read_some(child.stdout.take(), ANSWER_MAX);
    let complaint = read_parts(child.stderr.take(), COMPLAINT_MAX);
    let received = answer.recv_timeout(deadline);
    if received == Err(RecvTimeoutError::Timeout) {
        // It may be gone by now, which is as good.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("`{program}`: {error}"))?;
    // What it started may live on and keep the pipe open: what came so far is enough.
    let mut said = Vec::new();
    while let Ok(part) = complaint.recv_timeout(Duration::from_secs(1)) {
        said.extend(part);
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let said = if said.is_empty() { said } else { format!(": {said}") };
    match received {
        Err(_) => {
            Err(format!("`{program}` did not answer in {} seconds{said}", deadline.as_secs()))
        }
        Ok(_) if !status.success() => Err(format!("`{program}` ended with {status}{said}")),
        Ok(bytes) => {
            drop(told);
            Ok(bytes)
        }
    }
}

/// Writes the message on a thread of its own: a program that does not read must not hold us.
fn tell(child: &mut Child, message: Vec<u8>) -> Receiver<()> {
    let (sender, told) = channel();
    if let Some(mut input) = child.stdin.take() {
        std::thread::spawn(move || {
            // One that answers without reading everything has the last word by its answer.
            let _ = input.write_all(&message);
            drop(input);
            let _ = sender.send(());
        });
    }
    told
}

/// What comes out of a pipe, at most so much, once it is closed.
pub(crate) fn read_some(
    pipe: Option<impl Read + Send + 'static>,
    bytes_max: u64,
) -> Receiver<Vec<u8>> {
    let (sender, read) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // Half an answer is none, and is found to be one by its length.
            let _ = pipe.by_ref().take(bytes_max).read_to_end(&mut bytes);
        }
        // Whoever waited may have given up.
        let _ = sender.send(bytes);
    });
    read
}

/// What comes out of a pipe, at most so much, as it comes.
fn read_parts(pipe: Option<impl Read + Send + 'static>, bytes_max: u64) -> Receiver<Vec<u8>> {
    let (sender, read) = channel();
    std::thread::spawn(move || {
        let Some(pipe) = pipe else { return };
        let (mut pipe, mut part) = (pipe.take(bytes_max), [0; 256]);
        while let Ok(n @ 1..) = pipe.read(&mut part) {
            if sender.send(part[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    read
}

#[cfg(test)]
mod tests {
    use super::run_for;
    use std::time::Duration;

    fn shell(script: &str) -> Result<Vec<u8>, String> {
        let words = ["sh", "-c", script].map(str::to_owned);
        run_for(&words, b"message", Duration::from_secs(2))
    }

    #[test]
    fn what_the_program_prints_is_the_answer() {
        assert_eq!(shell("cat").as_deref(), Ok(&b"message"[..]));
        assert_eq!(shell("exec <&-; printf x").as_deref(), Ok(&b"x"[..]), "it need not read");
        let endless = shell("exec cat /dev/zero").unwrap_err();
        assert!(endless.contains("ended with signal"), "no more is read than fits: {endless}");
    }

    #[test]
    fn a_program_that_fails_hangs_or_is_not_there_is_told_of() {
        let error = shell("echo the token is locked >&2; exit 3").unwrap_err();
        assert!(error.contains("exit status: 3: the token is locked"), "{error}");
        // What the second one starts goes on when it is killed, and holds the pipes.
        for script in ["echo waiting >&2; exec sleep 20", "echo waiting >&2; sleep 20; :"] {
            let error = shell(script).unwrap_err();
            assert!(error.contains("did not answer in 2 seconds: waiting"), "{script}: {error}");
        }
        let error = run_for(&["/nowhere/sign".to_owned()], b"", Duration::from_secs(1));
        assert!(error.unwrap_err().contains("cannot be started"));
        assert!(run_for(&[], b"", Duration::from_secs(1)).is_err());
    }
}
