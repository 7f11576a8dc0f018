//! `forgelm verify-…`: what a stranger can check. The verdicts come from the evidence crate; here
//! they are only shown, and turned into exit codes.

use super::Context;
use crate::args::{
    LogLevel, TrustArgs, VerifyAuditArgs, VerifyBundleArgs, VerifyIntegrityArgs,
    VerifySignatureArgs,
};
use forgelm_artifact::open;
use forgelm_evidence::Class;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::bundle::archive::unpack;
use forgelm_evidence::bundle::verify::{BundleOptions, BundleReport, verify_bundle};
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::dsse::verify::SignatureState;
use forgelm_evidence::integrity::verify_integrity;
use forgelm_evidence::keys::trust::{TrustError, TrustedKeys, Usage};
use forgelm_evidence::signature::{AuditRequest, default_type, verify_audit_log, verify_signature};
use forgelm_run::dossier::to_evidence;
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::trust;
use serde_json::Value;
use std::io::Read as _;
use std::path::Path;

/// Checks a hash chain, and the signed checkpoint beside it.
pub fn audit(args: &VerifyAuditArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    if args.require_hmac && secret.is_none() {
        let text = "--require-hmac needs the secret in `FORGELM_AUDIT_SECRET`";
        return context.refused(Exit::Config, text);
    }
    let path = if args.path.is_dir() { args.path.join(LOG_FILE) } else { args.path.clone() };
    let keys = match keys_for(&args.trust, &env, &[Usage::Checkpoint]) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let report = verify_audit_log(
        &path,
        &AuditRequest {
            secret: secret.as_ref(),
            require_hmac: args.require_hmac,
            require_signature: args.require_signature
                || args.trust.stamps.require_timestamp
                || (names_keys(&args.trust) && !args.trust.allow_unsigned),
            keys,
        },
    );
    let mut lines = report.to_lines();
    if report.class != Class::Accepted {
        lines.insert(0, format!("{}:", path.display()));
    }
    verdict(report.class, &lines, &report.to_json(), context)
}

/// Checks the files of a model folder.
pub fn integrity(args: &VerifyIntegrityArgs, context: &mut Context) -> Exit {
    let report = verify_integrity(&args.dir);
    verdict(report.class, &report.to_lines(), &report.to_json(), context)
}

/// Checks the signature of one file.
pub fn signature(args: &VerifySignatureArgs, context: &mut Context) -> Exit {
    let env = context.environment();
    let keys = match keys_for(&args.trust, &env, &every_usage()) {
        Ok(keys) => keys,
        Err(error) => return context.failed(&error),
    };
    let named = args.kind.as_deref().and_then(PredicateType::parse);
    let expected = named.unwrap_or_else(|| default_type(&args.path));
    let report = verify_signature(&args.path, args.signature.as_deref(), &keys, expected);
    let is_absent = report.signature.state == SignatureState::Absent;
    if is_absent && args.trust.allow_unsigned && args.path.is_file() {
        let text = format!("warning: {}: there is no signature", args.path.display());
        context.progress.line(LogLevel::Warning, &text);
        return verdict(Class::Accepted, &report.to_lines(), &report.to_json(), context);
    }
    verdict(report.class(), &report.to_lines(), &report.to_json(), context)
}

/// Checks everything that a run signed.
pub fn bundle(args: &VerifyBundleArgs, context: &mut Context) -> Exit {
    match checked(args, context) {
        Ok(report) => verdict(report.class, &report.to_lines(), &report.to_json(), context),
        Err((exit, text)) => context.refused(exit, &text),
    }
}

/// Checks everything that a run signed, for a command that goes on when it is accepted: the exit
/// code when it is not.
pub fn refused_bundle(args: &VerifyBundleArgs, context: &mut Context) -> Option<Exit> {
    match checked(args, context) {
        Ok(report) if report.class == Class::Accepted => None,
        Ok(report) => Some(verdict(report.class, &report.to_lines(), &report.to_json(), context)),
        Err((exit, text)) => Some(context.refused(exit, &text)),
    }
}

/// The report; or why there is none, and the exit code of that.
fn checked(args: &VerifyBundleArgs, context: &Context) -> Result<BundleReport, (Exit, String)> {
    let env = &context.environment();
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    let options = BundleOptions {
        keys: keys_for(&args.trust, env, &[Usage::Run])
            .map_err(|error| (error.exit(), error.chain()))?,
        secret: secret.as_ref(),
        require_hmac: false,
        weights_left_out: args.dir.is_file(),
        allow_unsigned: args.trust.allow_unsigned,
        moved: None,
    };
    if args.dir.symlink_metadata().is_err() {
        return Err((Exit::Config, format!("{}: no such file or folder", args.dir.display())));
    }
    if !args.dir.is_file() {
        return Ok(verify_bundle(&args.dir, &options));
    }
    let place = env.cache_dir.join(format!("unpacked-{:032x}", env.random_bits));
    let unpacked =
        unpack(&args.dir, &place).map_err(|error| (exit_of(error.class()), error.to_string()))?;
    let report = verify_bundle(&unpacked.dir(), &options);
    Ok(BundleReport { dir: args.dir.clone(), ..report })
}

/// Shows a verdict: accepted on standard output, everything else on standard error.
pub(super) fn verdict(class: Class, lines: &[String], json: &Value, context: &mut Context) -> Exit {
    let text = lines.join("\n");
    if class == Class::Accepted || context.is_json() {
        context.result(&text, json);
    }
    if class != Class::Accepted {
        context.progress.line(LogLevel::Error, &text);
    }
    exit_of(class)
}

/// The exit code of a verdict.
pub fn exit_of(class: Class) -> Exit {
    match class {
        Class::Accepted => Exit::Success,
        Class::NotCompared => Exit::Config,
        Class::Unreadable => Exit::Runtime,
        Class::Different => Exit::Integrity,
    }
}

/// Whether the user said whom to trust.
pub(super) fn names_keys(trust: &TrustArgs) -> bool {
    !trust.key.is_empty() || trust.trusted_keys.is_some()
}

/// The keys that are trusted: those named, else those of the environment, else this user's own
/// key, made on first use. With `--require-timestamp`, what is signed for `stamped` needs a time stamp.
///
/// # Errors
/// If one of them, or a certificate of an authority, cannot be used.
pub fn keys_for(
    trust: &TrustArgs,
    env: &Environment,
    stamped: &[Usage],
) -> Result<TrustedKeys, RunError> {
    let mut keys = if !trust.key.is_empty() {
        TrustedKeys::of_key_files(&trust.key)?
    } else if let Some(store) = &trust.trusted_keys {
        TrustedKeys::load(store)?
    } else {
        trust::trusted_keys(None, env)?
    };
    if let Some(n) = trust.threshold {
        keys.set_threshold(usize::from(n));
    }
    for path in &trust.stamps.tsa_cert {
        let pem = read_certificates(path)?;
        keys.add_authorities(&pem).map_err(|error| TrustError::Malformed {
            place: path.display().to_string(),
            detail: error.to_string(),
        })?;
    }
    if trust.stamps.require_timestamp {
        keys.require_stamps(stamped);
    }
    Ok(keys)
}

/// For a command that checks one signature, of whatever kind.
pub fn every_usage() -> Vec<Usage> {
    Usage::ALL.iter().map(|(usage, _)| *usage).collect()
}

/// The bytes of a file of certificates.
fn read_certificates(path: &Path) -> Result<Vec<u8>, TrustError> {
    const BYTES_MAX: u64 = 4 << 20;
    let (file, _) = open::regular(path).map_err(TrustError::Open)?;
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|source| TrustError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}
