//! The signature of a shared library: its digest, under the name and version that it gives itself.
//!
//! [`crate::signature::verify_library`] is the other side.

use std::path::{Path, PathBuf};

use forgelm_artifact::write::{self, WriteError};
use serde_json::json;

use crate::documents::evidence::Builder;
use crate::dsse::Envelope;
use crate::dsse::statement::{PredicateType, Statement, Subject, is_subject_name};
use crate::keys::{KeyError, RunSigner};
use crate::signature::default_signature_path;

/// What is said about a library.
#[derive(Clone, Copy, Debug)]
pub struct LibraryClaims<'a> {
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: &'a str,
    /// Its own name.
    pub name: &'a str,
    /// Its own version.
    pub version: &'a str,
    /// What signs it.
    pub builder: &'a Builder,
    /// When.
    pub signed_at: &'a str,
}

/// Why a library is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Its file cannot be named in a statement.
    #[error("{}: the file's name cannot be signed; expected UTF-8 without a backslash", .path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The key gave no signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signature cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Signs the library at `path` and writes the envelope beside it, in place of one that is there;
/// returns the envelope's file.
///
/// # Errors
/// [`SignError`].
///
/// # Panics
/// If the digest is none: the caller's bug.
pub fn sign_library(
    path: &Path,
    claims: &LibraryClaims<'_>,
    signer: &RunSigner,
) -> Result<PathBuf, SignError> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_subject_name(name));
    let name = name.ok_or_else(|| SignError::Name { path: path.to_owned() })?;
    let predicate = json!({
        "name": claims.name,
        "version": claims.version,
        "builder": claims.builder.to_json(),
        "signed_at": claims.signed_at,
        "signer": signer.to_json(),
    });
    let subject = Subject { name: name.to_owned(), sha256: claims.sha256.to_owned() };
    let statement = Statement::new(vec![subject], PredicateType::PluginLibrary, predicate);
    let envelope = Envelope::sign(statement.to_bytes(), &signer.key)?;
    let beside = default_signature_path(path);
    write::atomic(&beside, &envelope.to_bytes())?;
    Ok(beside)
}
