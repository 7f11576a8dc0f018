//! `forgelm sign`: an envelope beside a file that exists already (S1, S6, S7), and more signatures in
//! an envelope that is there.
//!
//! A file of a finished run is not signed again: the run's attestation binds it and its envelope, and
//! would not verify any more. [`crate::signature::verify_signature`] is the other side.

use std::path::{Path, PathBuf};

use forgelm_artifact::Class;
use forgelm_artifact::write::{self, WriteError};
use serde_json::{Value, json};

use crate::approval::final_name;
use crate::bundle::{ATTESTATION, ROOT};
use crate::documents::evidence::Builder;
use crate::dsse::statement::{PredicateType, Statement, Subject, is_subject_name};
use crate::dsse::{Envelope, PAYLOAD_TYPE, SIGNATURES_MAX, pae};
use crate::files::{self, FileProblem};
use crate::keys::{KeyError, RunSigner};
use crate::signature::default_signature_path;
use crate::strict_json::DOCUMENT_LIMITS;

/// What is said of each file.
#[derive(Clone, Copy)]
pub struct FileClaims<'a> {
    /// What it is.
    pub kind: PredicateType,
    /// What signs it.
    pub builder: &'a Builder,
    /// Who.
    pub operator: &'a str,
    /// When.
    pub signed_at: &'a str,
}

/// A file that can be signed: everything that can be known before was checked.
#[derive(Debug)]
pub struct Signable {
    /// The file.
    pub path: PathBuf,
    /// Its digest.
    pub sha256: String,
    /// The envelope beside it.
    pub signature: PathBuf,
    name: String,
    /// The envelope that is there, when a signature is added.
    before: Option<Envelope>,
}

/// Why a file is not signed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SignFileError {
    /// It cannot be read, or is no file.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
        /// Whether the system refused to read it.
        is_unreadable: bool,
    },
    /// A statement cannot name it.
    #[error("{}: the file's name cannot be signed; expected UTF-8 without a backslash", .path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// An envelope is there.
    #[error("{}: exists already; a signature is never overwritten\n  hint: `--add` adds one to it", .signature.display())]
    Exists {
        /// The envelope.
        signature: PathBuf,
    },
    /// The folder is signed as a whole.
    #[error(
        "{}: `{}` binds every file of this folder, and would not verify with one more\n  hint: \
         `forgelm verify-bundle {}`; sign a copy elsewhere", .path.display(), .attestation.display(), .run.display()
    )]
    OfARun {
        /// The file.
        path: PathBuf,
        /// The attestation.
        attestation: PathBuf,
        /// The run.
        run: PathBuf,
    },
    /// The key gave no signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The envelope that is there cannot take another signature.
    #[error("{}: {reason}", .signature.display())]
    Add {
        /// The envelope.
        signature: PathBuf,
        /// Why.
        reason: String,
        /// Whether the envelope is of other bytes than the file has.
        is_different: bool,
    },
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl SignFileError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Write(error) => error.class(),
            Self::File { is_unreadable: true, .. } => Class::Runtime,
            Self::Key(error) if error.is_runtime() => Class::Runtime,
            Self::Add { is_different: true, .. } => Class::Integrity,
            Self::File { .. }
            | Self::Name { .. }
            | Self::Exists { .. }
            | Self::OfARun { .. }
            | Self::Key(_)
            | Self::Add { .. } => Class::Input,
        }
    }
}

/// Looks at a file that is to be signed as `kind`; with `add`, as one more signature in the envelope
/// beside it.
///
/// # Errors
/// [`SignFileError`].
pub fn signable(
    path: &Path,
    kind: PredicateType,
    add: bool,
    signer: &RunSigner,
) -> Result<Signable, SignFileError> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_subject_name(name));
    let name = name.ok_or_else(|| SignFileError::Name { path: path.to_owned() })?.to_owned();
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let digest = files::digest(parent, &name).map_err(|problem| SignFileError::File {
        path: path.to_owned(),
        reason: match problem {
            FileProblem::NotAFile("folder") => {
                "a folder, which is signed as a model and takes no second signature".to_owned()
            }
            ref other => other.reason(),
        },
        is_unreadable: matches!(problem, FileProblem::Unreadable(_)),
    })?;
    if let Some((run, attestation)) = run_of(parent) {
        return Err(SignFileError::OfARun { path: path.to_owned(), attestation, run });
    }
    let signature = default_signature_path(path);
    let sha256 = digest.sha256;
    let before = match (signature.symlink_metadata().is_ok(), add) {
        (true, false) => return Err(SignFileError::Exists { signature }),
        (_, true) => Some(envelope_to_add_to(&signature, (&name, &sha256), kind, signer)?),
        (false, false) => None,
    };
    Ok(Signable { path: path.to_owned(), sha256, signature, name, before })
}

/// The run whose attestation binds every file of `folder`, if there is one.
fn run_of(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let folder = folder.canonicalize().ok()?;
    folder.ancestors().find_map(|run| {
        let attestation = run.join(ATTESTATION);
        let bytes = files::read_bounded(&attestation, DOCUMENT_LIMITS.size_bytes).ok()??;
        // Not verified: this only says what is asked of the user, and errs on the side of asking.
        let statement = Statement::parse(&Envelope::parse(&bytes).ok()?.payload).ok()?;
        let below = folder.strip_prefix(run).ok()?;
        let scope = statement.predicate.get("scope").and_then(Value::as_array)?;
        let is_bound = |scope: &str| match scope {
            ROOT => below.as_os_str().is_empty(),
            // A staged folder is bound under the name that it gets when it is approved, too.
            scope => {
                let final_name = final_name(scope);
                below.starts_with(scope) || final_name.is_some_and(|name| below.starts_with(name))
            }
        };
        let is_bound = scope.iter().filter_map(Value::as_str).any(is_bound);
        is_bound.then(|| (run.to_owned(), attestation))
    })
}

fn envelope_to_add_to(
    signature: &Path,
    (name, sha256): (&str, &str),
    kind: PredicateType,
    signer: &RunSigner,
) -> Result<Envelope, SignFileError> {
    let refused = |reason: &str| SignFileError::Add {
        signature: signature.to_owned(),
        reason: reason.to_owned(),
        is_different: false,
    };
    let bytes = match files::read_bounded(signature, DOCUMENT_LIMITS.size_bytes) {
        Ok(bytes) => bytes.ok_or_else(|| refused("larger than 16 MiB"))?,
        Err(FileProblem::Missing) => return Err(refused("there is no signature to add one to")),
        Err(problem) => return Err(refused(&problem.reason())),
    };
    let envelope =
        Envelope::parse(&bytes).map_err(|e| refused(&format!("not an envelope: {e}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(refused("not an envelope of a statement"));
    }
    let statement = Statement::parse(&envelope.payload).map_err(|e| refused(&e))?;
    if statement.predicate_type != kind.uri() {
        let found = forgelm_artifact::Quoted(&statement.predicate_type);
        return Err(refused(&format!("a statement of type {found}; expected `{}`", kind.uri())));
    }
    let [Subject { name: of, sha256: signed }] = &statement.subjects[..] else {
        return Err(refused("a statement about several files"));
    };
    if of.rsplit('/').next() != Some(name) || signed != sha256 {
        return Err(SignFileError::Add {
            signature: signature.to_owned(),
            reason: "it is of other bytes than the file has: there is nothing to agree with"
                .to_owned(),
            is_different: true,
        });
    }
    let message = pae(&envelope.payload_type, &envelope.payload);
    let public = signer.key.public();
    if envelope.signatures.iter().any(|s| public.verifies(&message, &s.sig)) {
        return Err(refused("this key signed it already"));
    }
    if envelope.signatures.len() >= SIGNATURES_MAX {
        return Err(refused(&format!("it has {SIGNATURES_MAX} signatures already")));
    }
    Ok(envelope)
}

/// Signs a file that was looked at, and writes the envelope beside it; returns the number of
/// signatures in it.
///
/// # Errors
/// If it cannot be written; an envelope that was there is as it was then.
pub fn sign_file(
    file: &Signable,
    claims: &FileClaims<'_>,
    signer: &RunSigner,
) -> Result<usize, SignFileError> {
    let envelope = match &file.before {
        Some(before) => {
            let mut envelope = before.clone();
            envelope.add_signature(&signer.key)?;
            envelope
        }
        None => {
            let subject = Subject { name: file.name.clone(), sha256: file.sha256.clone() };
            let predicate = predicate(file, claims, signer);
            let statement = Statement::new(vec![subject], claims.kind, predicate);
            Envelope::sign(statement.to_bytes(), &signer.key)?
        }
    };
    write::atomic(&file.signature, &envelope.to_bytes())?;
    Ok(envelope.signatures.len())
}

fn predicate(file: &Signable, claims: &FileClaims<'_>, signer: &RunSigner) -> Value {
    let mut predicate = json!({
        "run_id": null,
        "pipeline_run_id": null,
        "forgelm_version": claims.builder.version,
        "builder": claims.builder.to_json(),
        "config_hash": null,
        "operator": claims.operator,
        "signed_at": claims.signed_at,
        "signer": signer.to_json(),
        "risk": {"compliance": null, "risk_assessment": null},
    });
    if claims.kind == PredicateType::ModelExport {
        let extension = file.path.extension().and_then(|extension| extension.to_str());
        predicate["format"] = json!(extension);
    }
    predicate
}
