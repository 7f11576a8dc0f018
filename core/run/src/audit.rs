//! `forgelm audit`: what is in data files, as a report and two gates.

use crate::environment::Environment;
use crate::error::RunError;
use crate::exit::Exit;
use forgelm_artifact::{json, write};
use std::path::PathBuf;

pub use forgelm_data::{
    AuditReport, AuditSettings, Dedup, FindingKind, Gate, Overlap, SplitReport,
};

/// The report's name in the output folder.
pub const REPORT_FILE: &str = "data_audit_report.json";

/// What is audited.
#[derive(Clone, Debug)]
pub struct AuditRequest {
    /// A file or a folder.
    pub input: PathBuf,
    /// Where the report goes.
    pub output_dir: PathBuf,
    /// What is looked for.
    pub settings: AuditSettings,
    /// Secrets fail nothing.
    pub allow_secrets: bool,
    /// Nor does personal data.
    pub allow_pii: bool,
}

/// An audit whose report is on disk.
#[derive(Clone, Debug)]
pub struct Audited {
    /// What was found.
    pub report: AuditReport,
    /// Where it is written.
    pub report_path: PathBuf,
    /// When.
    pub generated_at: String,
    /// The path as it was given.
    pub source_input: String,
    /// Whether secrets fail it.
    pub secrets_gate: Gate,
    /// Whether personal data does.
    pub pii_gate: Gate,
}

impl Audited {
    /// How the program ends. A gate comes first: what was found was found, whether or not all could be
    /// read. Nothing read is no success: there was nothing to judge.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if self.secrets_gate.has_failed() || self.pii_gate.has_failed() {
            return Exit::Gate;
        }
        let unreadable = self.report.unreadable.iter().map(|(_, _, class)| Exit::from(*class));
        match unreadable.max_by_key(|exit| exit.code()) {
            Some(exit) => exit,
            None if self.report.n_samples() == 0 => Exit::Config,
            None => Exit::Success,
        }
    }
}

/// Reads the data, and writes the report whole or not at all.
///
/// # Errors
/// If there is no data, or the report cannot be written.
pub fn audit(request: &AuditRequest, env: &Environment) -> Result<Audited, RunError> {
    let report = forgelm_data::audit(&request.input, &request.settings)?;
    let generated_at = env.clock.utc().to_string();
    let path = std::path::absolute(&request.input).unwrap_or_else(|_| request.input.clone());
    let input = request.input.display().to_string();
    let document = report.document(&input, &path, &generated_at);
    write::create_dir_all_durable(&request.output_dir)?;
    let report_path = request.output_dir.join(REPORT_FILE);
    write::atomic(&report_path, json::pretty(&document).as_bytes())?;
    Ok(Audited {
        secrets_gate: Gate::of_secrets(&report, request.allow_secrets),
        pii_gate: Gate::of_pii(&report, request.allow_pii),
        report,
        report_path,
        generated_at,
        source_input: input,
    })
}
