//! `forgelm audit`: what is in data files, as a report and two gates.

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::exit::Exit;
use forgelm_artifact::{json, write};
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::keys::RunSigner;
use forgelm_evidence::keys::lookup::find_signing_key;
use forgelm_evidence::sign::{FileClaims, sign_file, signable};
use forgelm_evidence::signature::default_signature_path;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// The private key that signs the report; without it, the one that the environment names.
    pub signing_key: Option<PathBuf>,
}

/// An audit whose report is on disk.
#[derive(Clone, Debug)]
pub struct Audited {
    /// What was found.
    pub report: AuditReport,
    /// Where it is written.
    pub report_path: PathBuf,
    /// Its envelope, where a key was named.
    pub signature: Option<PathBuf>,
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

/// Reads the data, and writes the report whole or not at all. It is signed (S6) where a key is named: by
/// the request, or in the environment.
///
/// # Errors
/// If there is no data, the key cannot be used, or something cannot be written.
pub fn audit(request: &AuditRequest, env: &Environment) -> Result<Audited, RunError> {
    // Before the work: what cannot sign would be found out after it.
    let signing = signing(request.signing_key.as_deref(), env)?;
    let report = forgelm_data::audit(&request.input, &request.settings)?;
    let generated_at = env.clock.utc().to_string();
    let path = std::path::absolute(&request.input).unwrap_or_else(|_| request.input.clone());
    let input = request.input.display().to_string();
    let document = report.document(&input, &path, &generated_at);
    write::create_dir_all_durable(&request.output_dir)?;
    let report_path = request.output_dir.join(REPORT_FILE);
    // That of an earlier report says nothing of this one.
    write::remove_file(&default_signature_path(&report_path))?;
    write::atomic(&report_path, json::pretty(&document).as_bytes())?;
    let signature =
        signing.map(|signing| sign(&report_path, &signing, &generated_at)).transpose()?;
    Ok(Audited {
        secrets_gate: Gate::of_secrets(&report, request.allow_secrets),
        pii_gate: Gate::of_pii(&report, request.allow_pii),
        report,
        report_path,
        signature,
        generated_at,
        source_input: input,
    })
}

/// Who signs, and with what.
struct Signing {
    operator: String,
    signer: Arc<RunSigner>,
}

/// No key is made for an audit: only one that is named signs.
fn signing(key: Option<&Path>, env: &Environment) -> Result<Option<Signing>, RunError> {
    let is_named = key.is_some() || env.signing_key_file.is_some() || env.signing_key.is_some();
    if !is_named {
        return Ok(None);
    }
    let operator = dossier::operator(env)?;
    let found = find_signing_key(&dossier::key_places(key.map(Path::to_owned), env))?;
    Ok(Some(Signing { operator, signer: found.signer }))
}

fn sign(report: &Path, signing: &Signing, signed_at: &str) -> Result<PathBuf, RunError> {
    let kind = PredicateType::DataAudit;
    let file = signable(report, kind, false, &signing.signer)?;
    let builder = dossier::builder();
    let claims = FileClaims { kind, builder: &builder, operator: &signing.operator, signed_at };
    sign_file(&file, &claims, &signing.signer)?;
    Ok(file.signature)
}
