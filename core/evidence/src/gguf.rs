//! `verify-gguf`: whether a GGUF file is whole, and is the file that was made.
//!
//! Three things are looked at: the header with all metadata and the place of every tensor, against the
//! size of the file; the digest beside it (`FILE.sha256`, as `sha256sum` writes it), which finds damage
//! and nothing more; and the signature (`FILE.dsse.json`), which is what holds. A file that has neither
//! digest nor signature was compared with nothing, and is not accepted unless that is allowed.
//!
//! Memory does not grow with the file: it is mapped, hashed in pieces that are let go of, and its header
//! is bounded by the reader.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use forgelm_artifact::gguf::{Fault, Header};
use forgelm_artifact::hash::Hasher;
use forgelm_artifact::map::MappedFile;
use forgelm_artifact::open::OpenError;
use serde_json::{Value, json};

use crate::class::Class;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::{SignatureReport, SignatureState};
use crate::files::{self, FileProblem};
use crate::keys::trust::TrustedKeys;
use crate::signature::verify_hashed;
use crate::text::shown;

/// What the name of the digest's file adds to that of the file.
pub const SIDECAR_SUFFIX: &str = ".sha256";
/// Bytes of a digest's file that are read.
const SIDECAR_BYTES_MAX: usize = 4096;
/// Bytes that are hashed before their memory is let go of.
const PIECE_BYTES: usize = 16 << 20;

/// What is accepted.
#[derive(Debug, Default)]
pub struct GgufOptions {
    /// Whose signature counts.
    pub keys: TrustedKeys,
    /// A digest alone does not suffice.
    pub require_signature: bool,
    /// A file with neither digest nor signature is accepted.
    pub allow_unsigned: bool,
}

/// What `verify-gguf` found.
#[derive(Clone, Debug)]
pub struct GgufReport {
    /// The exit class.
    pub class: Class,
    /// The file.
    pub path: PathBuf,
    /// Why, when it is not accepted.
    pub reason: Option<String>,
    /// Whether it begins as such files do.
    pub magic_ok: bool,
    /// Tensors in it, if its header is good.
    pub tensor_count: Option<usize>,
    /// What is wrong with its header.
    pub metadata_error: Option<String>,
    /// Whether there is a digest beside it.
    pub sidecar_present: bool,
    /// Whether that is the file's; `None` when it was not compared.
    pub sidecar_match: Option<bool>,
    /// Digest of the file, if it was taken.
    pub sha256_actual: Option<String>,
    /// Digest beside the file, in lower case.
    pub sha256_expected: Option<String>,
    /// Its signature.
    pub signature: Option<SignatureReport>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl GgufReport {
    fn new(path: &Path) -> Self {
        Self {
            class: Class::Accepted,
            path: path.to_owned(),
            reason: None,
            magic_ok: false,
            tensor_count: None,
            metadata_error: None,
            sidecar_present: false,
            sidecar_match: None,
            sha256_actual: None,
            sha256_expected: None,
            signature: None,
            notes: Vec::new(),
        }
    }

    /// One more finding: the worst class is the verdict, and the first reason of it the reason.
    fn finds(&mut self, class: Class, reason: impl Into<String>) {
        let reason = reason.into();
        if class > self.class {
            self.class = class;
            self.notes.extend(self.reason.replace(reason));
        } else {
            self.notes.push(reason);
        }
    }

    fn stopped(mut self, class: Class, reason: impl Into<String>) -> Self {
        self.finds(class, reason);
        self
    }

    /// The JSON document of the command.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class == Class::Accepted;
        let mut checks = json!({
            "magic_ok": self.magic_ok,
            "metadata_parsed": self.tensor_count.is_some(),
            "metadata_error": self.metadata_error,
            "sidecar_present": self.sidecar_present,
            "sidecar_match": self.sidecar_match,
        });
        let optional = [
            ("tensor_count", self.tensor_count.map(|n| json!(n))),
            ("sha256_actual", self.sha256_actual.as_ref().map(|hex| json!(hex))),
            ("sha256_expected", self.sha256_expected.as_ref().map(|hex| json!(hex))),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                checks[key] = value;
            }
        }
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        json!({
            "success": valid,
            "valid": valid,
            "reason": self.reason,
            "checks": checks,
            "path": path.display().to_string(),
            "signature": self.signature.as_ref().map(SignatureReport::to_json),
            "notes": self.notes,
        })
    }

    /// The lines for people: the verdict first.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let path = self.path.display();
        let mut first = match &self.reason {
            None => format!("OK: {path}"),
            Some(reason) => format!("FAIL: {path}: {reason}"),
        };
        if let (None, Some(n)) = (&self.reason, self.tensor_count) {
            // Writing to a string cannot fail.
            let _ = write!(first, ": {n} tensors");
        }
        let mut lines = vec![first];
        if let (Some(false), Some(actual), Some(expected)) =
            (self.sidecar_match, &self.sha256_actual, &self.sha256_expected)
        {
            lines.push(format!("  sha256: {actual}; expected {expected}"));
        }
        if let Some(signature) = &self.signature {
            lines.push(signature.to_line());
            if signature.state == SignatureState::UntrustedKey {
                lines.push("  hint: name the signer's public key with --key PUB".to_owned());
            }
        }
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines
    }
}

/// The digest's file of a file.
#[must_use]
pub fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SIDECAR_SUFFIX);
    name.into()
}

/// The text of the digest's file, in the form that `sha256sum -c` reads.
///
/// # Errors
/// If the file cannot be read.
pub fn sidecar_text(path: &Path) -> Result<String, OpenError> {
    let sha256 = forgelm_artifact::hash::sha256_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{sha256}  {name}\n"))
}

/// Verifies one GGUF file. Nothing is written.
#[must_use]
pub fn verify_gguf(path: &Path, options: &GgufOptions) -> GgufReport {
    let mut report = GgufReport::new(path);
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return report.stopped(Class::NotCompared, FileProblem::Symlink.reason());
    }
    let map = match MappedFile::open(path).map_err(FileProblem::from) {
        Ok(map) => map,
        Err(FileProblem::Missing) => {
            return report.stopped(Class::NotCompared, "there is no such file");
        }
        Err(FileProblem::Unreadable(detail)) => {
            return report.stopped(Class::Unreadable, format!("cannot be read: {detail}"));
        }
        Err(problem) => return report.stopped(Class::NotCompared, problem.reason()),
    };
    let header = Header::parse(&map);
    report.magic_ok = map.starts_with(b"GGUF");
    if let (false, Err(fault)) = (report.magic_ok, &header) {
        return report.stopped(Class::NotCompared, fault.to_string());
    }
    sidecar(path, &map, &mut report);
    match header {
        Ok(header) => report.tensor_count = Some(header.tensors.len()),
        Err(fault) => bad_header(&fault, &mut report),
    }
    signature(path, &map, options, &mut report);
    if !map.unchanged() {
        report.finds(Class::Unreadable, "the file was changed while it was looked at");
    }
    report
}

/// Whole by its digest, the file is one that this program cannot read; without one it is damaged.
fn bad_header(fault: &Fault, report: &mut GgufReport) {
    let class = match fault.class() {
        forgelm_artifact::Class::Integrity if report.sidecar_match != Some(true) => {
            Class::Different
        }
        _ => Class::NotCompared,
    };
    let text = fault.to_string();
    report.finds(class, format!("its header contradicts the file or is not read here: {text}"));
    report.metadata_error = Some(text);
}

/// The digest of the file, taken once. The memory of each piece is let go of.
fn sha256(map: &MappedFile, report: &mut GgufReport) -> String {
    let take = || {
        let mut hasher = Hasher::new();
        for piece in map.chunks(PIECE_BYTES) {
            hasher.update(piece);
            map.release(piece);
        }
        hasher.finish().to_string()
    };
    report.sha256_actual.get_or_insert_with(take).clone()
}

fn sidecar(path: &Path, map: &MappedFile, report: &mut GgufReport) {
    let beside = sidecar_path(path);
    let name = beside.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = shown(&name);
    let bytes = match files::read_bounded(&beside, SIDECAR_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(FileProblem::Missing) => return,
        Err(problem) => {
            report.sidecar_present = true;
            let class = match problem {
                FileProblem::Unreadable(_) => Class::Unreadable,
                _ => Class::NotCompared,
            };
            return report.finds(class, format!("{name}: {}", problem.reason()));
        }
    };
    report.sidecar_present = true;
    let text = bytes.as_deref().map(std::str::from_utf8);
    let Some(Ok(text)) = text else {
        let reason = format!("{name}: not a line of text; expected 64 hex digits and a name");
        return report.finds(Class::NotCompared, reason);
    };
    let mut words = text.split_whitespace();
    let digest =
        words.next().filter(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(digest) = digest else {
        let reason = format!("{name}: does not begin with 64 hex digits");
        return report.finds(Class::NotCompared, reason);
    };
    // `*` marks a file that was read as bytes.
    let of = words.next().map(|word| word.trim_start_matches('*'));
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned());
    if let Some(of) = of.filter(|of| Some(*of) != own.as_deref()) {
        report.notes.push(format!("{name} was written for {}", shown(of)));
    }
    let expected = digest.to_ascii_lowercase();
    let is_same = sha256(map, report) == expected;
    report.sha256_expected = Some(expected);
    report.sidecar_match = Some(is_same);
    if !is_same {
        report.finds(
            Class::Different,
            format!("its bytes are not those that {name} was written for"),
        );
    }
}

fn signature(path: &Path, map: &MappedFile, options: &GgufOptions, report: &mut GgufReport) {
    let kind = PredicateType::ModelExport;
    let found = verify_hashed(path, &options.keys, kind, || sha256(map, report));
    match found.state {
        SignatureState::Valid => {}
        SignatureState::Absent => absent(options, report),
        state => {
            let reason = found.reason.clone().unwrap_or_default();
            let (state, place) = (state.as_str(), shown(&found.place));
            report.finds(found.class, format!("signature: {state}: {place}: {reason}"));
        }
    }
    report.signature = Some(found);
}

/// There is no signature: the digest beside the file may do, or nothing.
fn absent(options: &GgufOptions, report: &mut GgufReport) {
    let text = match report.sidecar_match {
        Some(true) if !options.require_signature || options.allow_unsigned => {
            "it has no signature: whoever changes the file can write its digest anew"
        }
        Some(true) => "there is no signature",
        _ => "there is neither a signature nor a good digest: it was compared with nothing",
    };
    let is_enough = report.sidecar_match == Some(true) && !options.require_signature;
    if is_enough || options.allow_unsigned {
        report.notes.push(text.to_owned());
    } else {
        report.finds(Class::NotCompared, text);
    }
}

#[cfg(test)]
mod tests;
