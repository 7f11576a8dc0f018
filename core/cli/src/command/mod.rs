//! One file a command, and what they share: where results and errors go.

pub mod approval;
pub mod audit;
mod benchmark;
pub mod bundle;
pub mod chat;
pub mod checkpoint;
pub mod comm;
pub mod compliance;
pub mod config;
pub mod data;
pub mod doctor;
mod gates;
pub mod gguf;
pub mod keygen;
pub mod keys;
pub mod launch;
pub mod merge;
pub mod monitor;
pub mod pipeline;
pub mod plugin;
pub mod purge;
pub mod quantize;
pub mod reproduce;
pub mod reverse_pii;
pub mod run;
pub mod safety_eval;
pub mod score;
pub mod sign;
pub mod synthetic;
pub mod verify;

use crate::args::{Format, LogLevel, Output};
use crate::progress::{self, Progress};
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::launch::Report;
use forgelm_world::{SystemClock, View};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// Where a command's words go.
pub struct Context {
    /// Lines on standard error.
    pub progress: Progress,
    /// What `forgelm launch` is told of this run, where it started it.
    pub report: Option<Report>,
    format: Format,
}

impl Context {
    /// From the flags that every command takes. With JSON results only warnings and errors are
    /// shown beside them.
    #[must_use]
    pub fn new(output: &Output) -> Self {
        let is_quiet = output.quiet || output.format() == Format::Json;
        let level =
            if is_quiet { output.log_level.max(LogLevel::Warning) } else { output.log_level };
        Self { progress: Progress::new(level), report: None, format: output.format() }
    }

    /// The world, read now.
    #[must_use]
    pub fn environment(&self) -> Environment {
        let view = View {
            variable: Arc::new(forgelm_world::variable),
            program: std::env::current_exe().ok(),
            alarm: progress::alarm,
        };
        forgelm_world::environment(SystemClock::start(), &view)
    }

    /// Whether results are JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a result: the text, or the document where JSON was asked for.
    pub fn result(&self, text: &str, json: &Value) {
        match self.format {
            Format::Text => print(text),
            Format::Json => print(&document(json)),
        }
    }

    /// Shows a warning.
    pub fn warning(&mut self, text: &str) {
        self.progress.line(LogLevel::Warning, &format!("warning: {text}"));
    }

    /// Prints an error and returns its exit code. With JSON the envelope goes to standard output
    /// and the text to standard error all the same.
    pub fn failed(&mut self, error: &RunError) -> Exit {
        if let Some(report) = &mut self.report {
            report.failed(error);
        }
        let exit = error.exit();
        self.refused_with(exit, &error.chain(), &error.details())
    }

    /// Tells `forgelm launch` that the run has ended. What it is not told is not worth an end of another
    /// kind.
    pub fn ended(&mut self, exit: Exit) {
        if let Some(Err(error)) = self.report.as_mut().map(|report| report.end(exit)) {
            self.warning(&format!("`forgelm launch` does not hear of the end: {error}"));
        }
    }

    /// Prints a refusal and returns its exit code.
    pub fn refused(&mut self, exit: Exit, text: &str) -> Exit {
        self.refused_with(exit, text, &json!({}))
    }

    /// As [`Context::refused`], with more members in the JSON envelope.
    pub fn refused_with(&mut self, exit: Exit, text: &str, more: &Value) -> Exit {
        let text = text.trim_end();
        if self.is_json() {
            let mut envelope = json!({"success": false, "error": text, "exit_code": exit.code()});
            for (key, value) in more.as_object().into_iter().flatten() {
                envelope[key] = value.clone();
            }
            print(&document(&envelope));
        }
        self.progress.line(LogLevel::Error, &format!("error: {text}"));
        exit
    }
}

/// A JSON document as printed: two spaces of indent and a line end.
fn document(json: &Value) -> String {
    forgelm_artifact::json::pretty(json)
}

/// Prints to standard output. A reader that went away ends nothing: the work is done.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let _ = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
}
