//! Keys and signatures.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Arc;

use forgelm_evidence::Secret;
use forgelm_evidence::dsse::statement::PredicateType;
use forgelm_evidence::keys::KeyError;
use forgelm_evidence::keys::file::{NewKey, generate_key_file, public_key_path};
use forgelm_evidence::model::{ModelSigner, sign_model};
use forgelm_evidence::sign::{FileClaims, sign_file, signable};
use forgelm_evidence::signature::default_type;
use forgelm_run::dossier;
use forgelm_run::error::RunError;
use serde_json::json;

use crate::border::{call, optional_text, owned, put, text};
use crate::engine::forgelm_engine;
use crate::error::{Status, forgelm_error};
use crate::handle::Handle;
use crate::options::{Options, wrong};
use crate::train::Quiet;

/// Makes a key pair; `forgelm.h` has the contract.
///
/// # Safety
/// `path` is a text ended by NUL, `options` NULL or one; `engine` is an engine; each out-pointer is
/// NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_key_generate(
    engine: *const forgelm_engine,
    path: *const c_char,
    options: *const c_char,
    out_key: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let path = PathBuf::from(unsafe { text(path, "path") }?);
        // SAFETY: by this function's contract.
        let mut options = Options::parse("options", unsafe { optional_text(options, "options") }?)?;
        let (label, variable) = (options.text("label")?, options.text("passphrase_env")?);
        options.finish()?;
        let env = engine.environment(Arc::default());
        let passphrase = match &variable {
            None => None,
            Some(name) => Some((env.variable)(name).and_then(Secret::new).ok_or_else(|| {
                wrong(&format!("the variable `{name}` is not set, or empty; no key was made"))
            })?),
        };
        let new = NewKey { label: label.as_deref(), passphrase: passphrase.as_ref() };
        let key = generate_key_file(&path, &new).map_err(RunError::from)?;
        let made = json!({
            "keyid": key.id().as_str(),
            "is_encrypted": passphrase.is_some(),
            "private_key": path,
            "public_key": public_key_path(&path),
            "public_key_pem": key.public().to_pem(),
        });
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_key, || owned(&made.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Signs a file or a model's folder; `forgelm.h` has the contract.
///
/// # Safety
/// `path` is a text ended by NUL, `options` NULL or one; `engine` is an engine; each out-pointer is
/// NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_sign(
    engine: *const forgelm_engine,
    path: *const c_char,
    options: *const c_char,
    out_signature: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let path = PathBuf::from(unsafe { text(path, "path") }?);
        // SAFETY: by this function's contract.
        let mut options = Options::parse("options", unsafe { optional_text(options, "options") }?)?;
        let key = options.path("signing_key")?;
        options.finish()?;
        let kind = default_type(&path);
        if !matches!(
            kind,
            PredicateType::ModelFolder
                | PredicateType::ComplianceManifest
                | PredicateType::ModelExport
                | PredicateType::DataAudit
        ) {
            return Err(wrong(&format!("{}: is signed by the run that made it", path.display())));
        }
        let env = engine.environment(Arc::default());
        let operator = dossier::operator(&env)?;
        let found = dossier::key_by_default(key, &env, &mut Quiet)?;
        let signer = found.ok_or(RunError::from(KeyError::NoPlace))?.signer;
        let (builder, signed_at) = (dossier::builder(), env.clock.utc().to_string());
        let claims =
            FileClaims { kind, builder: &builder, operator: &operator, signed_at: &signed_at };
        let signature = if kind == PredicateType::ModelFolder && path.is_dir() {
            let signer = ModelSigner::Run(&signer);
            sign_model(&path, &claims, signer).map_err(RunError::from)?.signature
        } else {
            let file = signable(&path, kind, false, &signer).map_err(RunError::from)?;
            sign_file(&file, &claims, &signer).map_err(RunError::from)?;
            file.signature
        };
        let signed = json!({
            "path": path,
            "type": kind.uri(),
            "signature": signature,
            "keyid": signer.key.id().as_str(),
        });
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_signature, || owned(&signed.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}
