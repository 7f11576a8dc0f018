//! `forgelm doctor`: one line for each thing that was tried.

use super::Context;
use crate::args::{DoctorArgs, LogLevel};
use forgelm_run::doctor::{self, Check, Diagnosis, Status};
use forgelm_run::exit::Exit;
use serde_json::json;
use std::fmt::Write as _;

/// Tries everything.
pub fn doctor(args: &DoctorArgs, context: &mut Context) -> Exit {
    let diagnosis = doctor::doctor(args.offline, &context.environment());
    let (exit, failure) = (diagnosis.exit(), failure(&diagnosis));
    let mut document = diagnosis.to_json();
    if let Some(text) = &failure {
        document["error"] = json!(text);
        document["exit_code"] = json!(exit.code());
    }
    context.result(&text(&diagnosis), &document);
    if let Some(text) = failure {
        context.progress.line(LogLevel::Error, &format!("error: {text}"));
    }
    exit
}

/// Why it is no success.
fn failure(diagnosis: &Diagnosis) -> Option<String> {
    let failed = diagnosis.failed();
    let n = diagnosis.checks.len();
    (!failed.is_empty())
        .then(|| format!("{} of {n} checks failed: {}", failed.len(), failed.join(", ")))
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut text = "forgelm doctor\n".to_owned();
    let width = diagnosis.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &diagnosis.checks {
        text.push_str(&line(check, width));
    }
    let count = |status| diagnosis.count(status);
    let (pass, warn, fail) = (count(Status::Pass), count(Status::Warn), count(Status::Fail));
    let _ = write!(text, "{pass} passed, {warn} warnings, {fail} failed");
    match diagnosis.n_crashed() {
        0 => text.push('\n'),
        n => {
            let _ = writeln!(text, ", of which {n} crashed");
        }
    }
    text
}

/// Glyph and word say the same: no meaning by a sign alone.
fn line(check: &Check, width: usize) -> String {
    let glyph = match check.status {
        Status::Pass => '+',
        Status::Warn => '!',
        Status::Fail => 'x',
    };
    let (status, name, detail) = (check.status.name(), &check.name, &check.detail);
    let mut line = format!("  [{glyph} {status}] {name:<width$}  {detail}\n");
    if let (Some(hint), Status::Warn | Status::Fail) = (&check.hint, check.status) {
        let _ = writeln!(line, "      hint: {hint}");
    }
    line
}
