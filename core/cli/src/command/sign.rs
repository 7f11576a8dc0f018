//! `forgelm sign`: all files are looked at before the first is signed.

use super::Context;
use super::verify::{exit_of, keys_for};
use crate::args::SignArgs;
use forgelm_evidence::bundle::ATTESTATION;
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::keys::p256::P256Key;
use forgelm_evidence::model::{ModelSigner, SignedModel, sign_model};
use forgelm_evidence::sign::{FileClaims, sign_file, signable};
use forgelm_evidence::signature::default_type;
use forgelm_run::cosign::{Cosigned, cosign, is_run};
use forgelm_run::dossier;
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Signs files.
pub fn sign(args: &SignArgs, context: &mut Context) -> Exit {
    match sign_all(args, context) {
        Ok((text, document)) => {
            context.result(&text, &document);
            Exit::Success
        }
        Err(Refusal::One(error)) => context.failed(&error),
        Err(Refusal::Many(exit, text)) => context.refused(exit, &text),
    }
}

enum Refusal {
    One(RunError),
    Many(Exit, String),
}

impl<E: Into<RunError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::One(error.into())
    }
}

fn sign_all(args: &SignArgs, context: &mut Context) -> Result<(String, Value), Refusal> {
    let env = context.environment();
    let operator = dossier::operator(&env)?;
    if let Some(path) = &args.signing_key
        && let Some(key) = P256Key::load(path)?
    {
        return sign_models(args, &key, &operator, &env);
    }
    let key = args.signing_key.clone();
    let found = dossier::key_by_default(key, &env, &mut context.progress)?;
    // It is only missing where a config says so, and there is none.
    let signer = found.ok_or(forgelm_evidence::keys::KeyError::NoPlace)?.signer;
    let named = args.kind.as_deref().and_then(PredicateType::parse);
    let mut files = Vec::new();
    let mut models = Vec::new();
    let mut refused: Vec<RunError> = Vec::new();
    let runs = if args.add { runs_of(args)? } else { Vec::new() };
    for path in args.paths.iter().filter(|path| !runs.contains(path)) {
        let kind = named.unwrap_or_else(|| default_type(path));
        match kind {
            PredicateType::PluginLibrary => {
                let text = format!("{}: a library\n  hint: `forgelm plugin sign`", path.display());
                return Err(Refusal::Many(Exit::Config, text));
            }
            PredicateType::AuditCheckpoint => {
                let text = format!("{}: an audit log, whose head a run signs", path.display());
                return Err(Refusal::Many(Exit::Config, text));
            }
            PredicateType::ApprovalDecision => {
                let text = format!(
                    "{}: a decision\n  hint: `forgelm approve` and `forgelm reject` sign it",
                    path.display()
                );
                return Err(Refusal::Many(Exit::Config, text));
            }
            PredicateType::ModelFolder if path.is_dir() && !args.add => {
                models.push(path);
                continue;
            }
            PredicateType::ComplianceManifest
            | PredicateType::Erasure
            | PredicateType::ModelFolder
            | PredicateType::TrainingRun
            | PredicateType::DataAudit
            | PredicateType::ModelExport => {}
        }
        match signable(path, kind, args.add, &signer) {
            Ok(file) => files.push((file, kind)),
            Err(error) => refused.push(error.into()),
        }
    }
    if refused.len() > 1 {
        let lines: Vec<String> = refused.iter().map(RunError::chain).collect();
        let text = format!("{}\n{} problems; nothing was signed", lines.join("\n"), lines.len());
        let exit = refused.iter().map(RunError::exit).max_by_key(|exit| exit.code());
        return Err(Refusal::Many(exit.unwrap_or(Exit::Config), text));
    }
    if let Some(error) = refused.pop() {
        return Err(Refusal::One(error));
    }
    let (builder, signed_at) = (dossier::builder(), env.clock.utc().to_string());
    let claims =
        |kind| FileClaims { kind, builder: &builder, operator: &operator, signed_at: &signed_at };
    let keyid = signer.key.id();
    let (mut text, mut rows) = (String::new(), Vec::new());
    for path in runs {
        let keys = keys_for(&args.cosign.trust(), &env, &[])?;
        match cosign(path, keys, &signer, &env)? {
            Cosigned::Added { n_signatures } => {
                let (run, attestation) = (path.display(), path.join(ATTESTATION));
                text.push_str(&format!(
                    "{run}: signed by {keyid} too, {n_signatures} signatures in all\n  {}\n",
                    attestation.display()
                ));
                rows.push(json!({
                    "path": path,
                    "type": PredicateType::TrainingRun.uri(),
                    "signature": attestation,
                    "signatures": n_signatures,
                }));
            }
            Cosigned::Refused(report) => {
                let lines = report.to_lines().join("\n");
                let text = format!("{lines}\nnot signed: the run must verify before it is");
                return Err(Refusal::Many(exit_of(report.class), text));
            }
        }
    }
    // Folders first: one that is refused is only found by reading it.
    for path in models {
        let kind = PredicateType::ModelFolder;
        let signed = sign_model(path, &claims(kind), ModelSigner::Run(&signer))?;
        text.push_str(&told(path, &signed, keyid.as_str()));
        rows.push(row(path, &signed));
    }
    for (file, kind) in &files {
        let n_signatures = sign_file(file, &claims(*kind), &signer)?;
        text.push_str(&format!(
            "{}: signed by {keyid} as {}\n  {}\n",
            file.path.display(),
            kind.suffix(),
            file.signature.display()
        ));
        rows.push(json!({
            "path": file.path,
            "sha256": file.sha256,
            "type": kind.uri(),
            "signature": file.signature,
            "signatures": n_signatures,
        }));
    }
    Ok((text, json!({"success": true, "keyid": keyid.as_str(), "files": rows})))
}

/// The runs among what is to be signed; one that is named with other things is refused.
fn runs_of(args: &SignArgs) -> Result<Vec<&PathBuf>, Refusal> {
    let runs: Vec<&PathBuf> = args.paths.iter().filter(|path| is_run(path)).collect();
    match runs.first() {
        Some(run) if args.paths.len() > 1 || args.kind.is_some() => {
            let text = format!("{}: a run is co-signed alone, and without `--type`", run.display());
            Err(Refusal::Many(Exit::Config, text))
        }
        Some(_) | None => Ok(runs),
    }
}

/// Model folders by a P-256 key, which signs nothing else.
fn sign_models(
    args: &SignArgs,
    key: &P256Key,
    operator: &str,
    env: &Environment,
) -> Result<(String, Value), Refusal> {
    if let Some(file) = args.paths.iter().find(|path| !path.is_dir()) {
        let text = format!(
            "{}: not a model folder\n  hint: a P-256 key signs model folders alone; `forgelm keygen` makes \
             one for everything",
            file.display()
        );
        return Err(Refusal::Many(Exit::Config, text));
    }
    let (builder, signed_at) = (dossier::builder(), env.clock.utc().to_string());
    let kind = PredicateType::ModelFolder;
    let claims = FileClaims { kind, builder: &builder, operator, signed_at: &signed_at };
    let public = key.public();
    let (mut text, mut rows) = (String::new(), Vec::new());
    for path in &args.paths {
        let signed = sign_model(path, &claims, ModelSigner::P256(key))?;
        text.push_str(&told(path, &signed, public.fingerprint()));
        rows.push(row(path, &signed));
    }
    Ok((text, json!({"success": true, "keyid": public.fingerprint(), "files": rows})))
}

fn told(path: &Path, signed: &SignedModel, keyid: &str) -> String {
    let (n, signature) = (signed.n_files, signed.signature.display());
    format!("{}: {n} files signed by {keyid} as a model\n  {signature}\n", path.display())
}

fn row(path: &Path, signed: &SignedModel) -> Value {
    json!({
        "path": path,
        "sha256": signed.root_sha256,
        "type": PredicateType::ModelFolder.uri(),
        "signature": signed.signature,
        "signatures": 1,
    })
}
