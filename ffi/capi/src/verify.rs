//! What a stranger can check.

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_evidence::Class;
use forgelm_evidence::annex_iv::{AnnexIvOptions, verify_annex_iv};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::bundle::verify::{BundleOptions, verify_bundle};
use forgelm_evidence::gguf::{GgufOptions, verify_gguf};
use forgelm_evidence::integrity::verify_integrity;
use forgelm_evidence::keys::trust::TrustedKeys;
use forgelm_evidence::signature::{AuditRequest, default_type, verify_audit_log, verify_signature};
use forgelm_run::dossier::to_evidence;
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::trust;
use serde_json::Value;

use crate::border::{call, optional_text, owned, put, text};
use crate::engine::forgelm_engine;
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::Handle;
use crate::options::{Options, wrong};

/// Whom a host trusts, and what it lets pass.
struct Trust {
    keys: TrustedKeys,
    /// It named keys: then an unsigned file is not accepted silently.
    is_named: bool,
    allow_unsigned: bool,
    require_hmac: bool,
}

impl Trust {
    /// `{"keys": [..], "trusted_keys": path, "threshold", "allow_unsigned", "require_hmac"}`.
    fn read(options: Option<&str>, env: &Environment) -> Result<Self, Failure> {
        let mut options = Options::parse("options", options)?;
        let files = options.paths("keys")?;
        let store = options.path("trusted_keys")?;
        let threshold = options.whole("threshold", 16)?;
        let is_named = !files.is_empty() || store.is_some();
        let keys = if !files.is_empty() {
            TrustedKeys::of_key_files(&files).map_err(RunError::from)?
        } else if let Some(store) = &store {
            TrustedKeys::load(store).map_err(RunError::from)?
        } else {
            trust::trusted_keys(None, env)?
        };
        let mut trust = Self {
            keys,
            is_named,
            allow_unsigned: options.flag("allow_unsigned")?,
            require_hmac: options.flag("require_hmac")?,
        };
        options.finish()?;
        if let Some(n) = threshold {
            trust.keys.set_threshold(usize::try_from(n).unwrap_or(usize::MAX));
        }
        Ok(trust)
    }
}

/// What is verified.
#[derive(Clone, Copy)]
enum What {
    Bundle,
    AuditLog,
    Signature,
    AnnexIv,
    Integrity,
    Gguf,
}

impl What {
    /// The words of the header.
    const ALL: [(&'static str, Self); 6] = [
        ("bundle", Self::Bundle),
        ("audit_log", Self::AuditLog),
        ("signature", Self::Signature),
        ("annex_iv", Self::AnnexIv),
        ("integrity", Self::Integrity),
        ("gguf", Self::Gguf),
    ];

    fn parse(word: &str) -> Result<Self, Failure> {
        let found = Self::ALL.iter().find(|(name, _)| *name == word);
        found.map(|(_, what)| *what).ok_or_else(|| {
            let words: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            wrong(&format!("`what` is `{word}`; expected one of {}", words.join(", ")))
        })
    }
}

/// The verdict, and the report of the terminal's `verify-…`.
fn verify(what: What, path: &Path, trust: Trust, env: &Environment) -> (Class, Value) {
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    let Trust { keys, is_named, allow_unsigned, require_hmac } = trust;
    let require_signature = is_named && !allow_unsigned;
    match what {
        What::Bundle => {
            let options = BundleOptions {
                keys,
                secret: secret.as_ref(),
                require_hmac,
                allow_unsigned,
                ..BundleOptions::default()
            };
            let report = verify_bundle(path, &options);
            (report.class, report.to_json())
        }
        What::AuditLog => {
            let path = if path.is_dir() { path.join(LOG_FILE) } else { path.to_owned() };
            let secret = secret.as_ref();
            let request = AuditRequest { secret, require_hmac, require_signature, keys };
            let report = verify_audit_log(&path, &request);
            (report.class, report.to_json())
        }
        What::Signature => {
            let report = verify_signature(path, None, &keys, default_type(path));
            (report.class(), report.to_json())
        }
        What::AnnexIv => {
            let options =
                AnnexIvOptions { keys, allow_unsigned, allow_unhashed: false, strict: false };
            let report = verify_annex_iv(path, &options);
            (report.class, report.to_json())
        }
        What::Integrity => {
            let report = verify_integrity(path);
            (report.class, report.to_json())
        }
        What::Gguf => {
            let report =
                verify_gguf(path, &GgufOptions { keys, require_signature, allow_unsigned });
            (report.class, report.to_json())
        }
    }
}

/// Verifies evidence; `forgelm.h` has the contract.
///
/// # Safety
/// `what` and `path` are texts ended by NUL, `options` is NULL or one; `engine` is an engine; each
/// out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_verify(
    engine: *const forgelm_engine,
    what: *const c_char,
    path: *const c_char,
    options: *const c_char,
    out_report: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let what = What::parse(unsafe { text(what, "what") }?)?;
        // SAFETY: by this function's contract.
        let path = PathBuf::from(unsafe { text(path, "path") }?);
        let env = engine.environment(Arc::default());
        // SAFETY: by this function's contract.
        let trust = Trust::read(unsafe { optional_text(options, "options") }?, &env)?;
        let (class, report) = verify(what, &path, trust, &env);
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_report, || owned(&report.to_string())) };
        Ok(match class {
            Class::Accepted => Status::Ok,
            Class::NotCompared => Status::ConfigError,
            Class::Unreadable => Status::RuntimeError,
            Class::Different => Status::IntegrityError,
        })
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}
