//! Signatures of libraries: whose count, what is refused, and how one is made.

use super::{CHECK_DEADLINE, Plugins};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::kernels::Kernels;
use forgelm_evidence::Class;
use forgelm_evidence::dsse::verify::SignatureState;
use forgelm_evidence::keys::lookup::{FoundKey, find_signing_key};
use forgelm_evidence::keys::trust::TrustedKeys;
use forgelm_evidence::library::{LibraryClaims, sign_library};
use forgelm_evidence::signature::verify_library;
use forgelm_loader::LibraryFile;
use forgelm_loader::search::Found;
use forgelm_plugin::Signature;
use std::path::{Path, PathBuf};

/// What is asked of a library before it is opened.
pub(super) struct Signatures {
    keys: TrustedKeys,
    /// `plugins.require_signed`.
    is_required: bool,
}

impl Signatures {
    pub(super) fn new(keys: TrustedKeys, is_required: bool) -> Self {
        Self { keys, is_required }
    }

    /// Reads a library and verifies the signature beside it, over the bytes that were read. A
    /// signature that contradicts them is never taken for none; one by a key that is not trusted is,
    /// with a note. What ships with the program needs none: who can replace it can replace the program.
    pub(super) fn read(
        &self,
        found: &Found,
        notes: &mut Vec<String>,
    ) -> Result<LibraryFile, RunError> {
        let file = LibraryFile::read(&found.path)?;
        let report = verify_library(file.path(), file.sha256(), &self.keys);
        let (path, state) = (found.path.clone(), report.state.as_str());
        let reason = report.reason.unwrap_or_default();
        match report.class {
            Class::Accepted => Ok(file.signed(Some(Signature {
                keyid: report.keyid.unwrap_or_default(),
                label: report.label,
                signed_at: report.signed_at,
            }))),
            Class::Different | Class::Unreadable => {
                Err(RunError::Signature { path, state, reason, class: report.class })
            }
            // What is there and cannot be read is not taken for none either.
            Class::NotCompared if report.state == SignatureState::Malformed => {
                Err(RunError::Signature { path, state, reason, class: report.class })
            }
            Class::NotCompared if self.is_required && !found.is_bundled => {
                Err(RunError::Unsigned { path, state, reason })
            }
            Class::NotCompared => {
                if report.state != SignatureState::Absent {
                    let path = path.display();
                    notes.push(format!("{path}: its signature does not count: {reason}"));
                }
                Ok(file)
            }
        }
    }
}

/// A library that was signed.
#[derive(Debug)]
pub struct Signed {
    /// The library's own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Id of the key.
    pub keyid: String,
    /// The envelope.
    pub signature: PathBuf,
    /// The key's file, if it was made just now.
    pub new_key: Option<PathBuf>,
}

/// Signs a library with the key at `key`, else with the one that runs sign with. It is loaded once, in a
/// process of its own, for its name and version.
///
/// # Errors
/// If it cannot be loaded, or the key cannot be used, or the signature cannot be written.
pub fn sign(path: &Path, key: Option<&Path>, env: &Environment) -> Result<Signed, RunError> {
    let file = LibraryFile::read(path)?;
    let plugins = Plugins::empty(Kernels::on_host(crate::model::all_cores()));
    // Nothing was loaded by this loader before: there is a library.
    let program = plugins.worker_program(env, CHECK_DEADLINE)?;
    let library = plugins.loader(env, CHECK_DEADLINE).open_in_worker(&file, &program)?;
    let (name, version) = library
        .map(|library| (library.origin.library.clone(), library.origin.version.clone()))
        .unwrap_or_default();
    let FoundKey { signer, path: key_path, is_new } =
        find_signing_key(&dossier::key_places(key.map(Path::to_owned), env))?;
    let claims = LibraryClaims {
        sha256: file.sha256(),
        name: &name,
        version: &version,
        builder: &dossier::builder(),
        signed_at: &env.clock.utc().to_string(),
    };
    let signature = sign_library(path, &claims, &signer)?;
    Ok(Signed {
        name,
        version,
        sha256: file.sha256().to_owned(),
        keyid: signer.key.id().to_string(),
        signature,
        new_key: key_path.filter(|_| is_new),
    })
}
