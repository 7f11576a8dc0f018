//! `forgelm reverse-pii`: where someone is in data files, for a request under Article 15 of the GDPR.
//!
//! That it was asked is recorded before the answer is given, by a digest of the query and under the name
//! of who asked: without one nothing is searched. An answer is whole or there is none: a file that
//! cannot be read to its end gives an error, never the matches before it.
//!
//! Start reading at [`reverse_pii`].

mod pattern;
mod search;

use crate::dossier;
use crate::environment::Environment;
use crate::erasure::message;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::identifier::{HASH_SCHEME, IdentifierError, Identifiers, SaltSource};
pub use pattern::IdentifierKind;
use pattern::Pattern;
pub use search::Match;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Why nobody is looked for, or not found out.
#[derive(Debug, thiserror::Error)]
pub enum ReversePiiError {
    /// A flag's value that cannot be used. What was asked for is not repeated.
    #[error("`{flag}`: {problem}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// There is nothing to search.
    #[error("{given}: no regular file is there; nothing was searched")]
    NoFiles {
        /// As given.
        given: String,
    },
    /// A file whose text cannot be seen.
    #[error("{}: is {what}, which is not searched; nothing was\n  hint: unpack it, and name what comes out", .path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file cannot be read to its end.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A line that is too long to be one.
    #[error("{}:{line}: longer than {n_bytes_max} bytes; nothing is said of any file", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The cap.
        n_bytes_max: u64,
    },
    /// The query cannot be hashed, so that nothing could be recorded.
    #[error(transparent)]
    Identifier(#[from] IdentifierError),
}

impl ReversePiiError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Flag { .. } | Self::NoFiles { .. } | Self::Packed { .. } => Exit::Config,
            Self::Open(_) | Self::Line { .. } | Self::Identifier(_) => Exit::Runtime,
        }
    }

    /// The word in events.
    const fn name(&self) -> &'static str {
        match self {
            Self::Flag { .. } => "BadFlag",
            Self::NoFiles { .. } => "NoFiles",
            Self::Packed { .. } => "Packed",
            Self::Open(_) => "ReadFailed",
            Self::Line { .. } => "LineTooLong",
            Self::Identifier(_) => "SaltFailed",
        }
    }
}

/// What is asked.
#[derive(Clone)]
pub struct ReversePiiRequest {
    /// Files, or patterns of them.
    pub files: Vec<String>,
    /// Who is looked for.
    pub query: String,
    /// What the query is.
    pub kind: IdentifierKind,
    /// Searches for the query's digest instead, under this key.
    pub salt_source: Option<SaltSource>,
    /// The folder with the salt; that of the first file when not given.
    pub output_dir: Option<PathBuf>,
    /// The folder whose log has the record; that of the salt when not given.
    pub audit_dir: Option<PathBuf>,
    /// Whether the text around a match is shown.
    pub has_snippets: bool,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct FoundPii {
    query_hash: String,
    kind: IdentifierKind,
    salt_source: Option<SaltSource>,
    has_snippets: bool,
    /// Each file with its matches.
    files: Vec<(PathBuf, Vec<Match>)>,
}

/// Searches the files, and records that it was asked.
///
/// # Errors
/// If there is nothing to search, nobody to name as who asks, or a file cannot be read to its end.
pub fn reverse_pii(
    request: &ReversePiiRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<FoundPii, RunError> {
    let flag = |flag, problem: &str| ReversePiiError::Flag { flag, problem: problem.to_owned() };
    let query = request.query.trim();
    if query.is_empty() {
        return Err(flag("--query", "blank; expected what to look for").into());
    }
    // Before anything is searched: a question that nobody asked is not answered.
    let operator = dossier::operator(env)?;
    let plain = Pattern::of(request.kind, query)?;
    let files = files(&request.files)?;
    let secret = env.audit_secret.as_ref().and_then(dossier::to_evidence);
    if request.salt_source == Some(SaltSource::EnvVar) && secret.is_none() {
        let problem = "`env_var` needs the secret in `FORGELM_AUDIT_SECRET`";
        return Err(flag("--salt-source", problem).into());
    }
    let dir = match &request.output_dir {
        Some(dir) => dir.clone(),
        None => {
            let parent = files[0].parent().unwrap_or(Path::new(".")).to_owned();
            let text = format!("no --output-dir: salt and record are in `{}`", parent.display());
            observer.observe(&Event::Warning(text));
            parent
        }
    };
    write::create_dir_all_durable(&dir)?;
    let identifiers = Identifiers::of_folder(&dir, secret).map_err(ReversePiiError::from)?;
    let pattern = match request.salt_source {
        None => plain,
        Some(SaltSource::EnvVar) => Pattern::of_digests(&identifiers, query),
        Some(SaltSource::PerDir) => Pattern::of_digests(&identifiers.per_dir(), query),
    };
    let identity = AuditIdentity {
        run_id: env.run_id(),
        operator,
        secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
        allow_reroot: env.allow_audit_reroot,
    };
    let audit_dir = request.audit_dir.as_ref().unwrap_or(&dir);
    let mut audit = AuditLog::open(audit_dir, identity, env.clock.clone())?;
    let query_hash = identifiers.digest(query);
    let mut record = |match_count, error: Option<&ReversePiiError>| {
        audit.append(&AuditEvent::DataAccessRequestQuery {
            query_hash: query_hash.clone(),
            hash_scheme: HASH_SCHEME.to_owned(),
            identifier_type: request.kind.as_str().to_owned(),
            scan_mode: scan_mode(request.salt_source).to_owned(),
            salt_source: salt_source(request.salt_source).to_owned(),
            files_scanned: files.iter().map(|path| path.display().to_string()).collect(),
            match_count,
            error_class: error.map(|error| error.name().to_owned()),
            error_message: error.map(|error| message(&error.to_string())),
        })
    };
    let searched: Result<Vec<_>, ReversePiiError> = files
        .iter()
        .map(|path| Ok((path.clone(), search::matches(path, &pattern, request.has_snippets)?)))
        .collect();
    match &searched {
        Ok(searched) => {
            let n = searched.iter().map(|(_, matches)| matches.len() as u64).sum();
            record(Some(n), None)?;
        }
        Err(error) => record(None, Some(error))?,
    }
    let found = FoundPii {
        query_hash,
        kind: request.kind,
        salt_source: request.salt_source,
        has_snippets: request.has_snippets,
        files: searched?,
    };
    if request.has_snippets && found.n_matches() > 0 {
        let text = "snippets have personal data in the clear; --no-snippets leaves them out";
        observer.observe(&Event::Warning(text.to_owned()));
    }
    Ok(found)
}

/// The regular files that are named or match a pattern, each once. All of them can be searched.
fn files(given: &[String]) -> Result<Vec<PathBuf>, ReversePiiError> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for text in given {
        // A file whose name looks like a pattern is the file.
        let paths: Vec<PathBuf> = match Path::new(text).is_file() {
            true => vec![PathBuf::from(text)],
            false => expanded(text)?,
        };
        for path in paths {
            let io = |source| OpenError::Io { path: path.clone(), source };
            if path.is_file() && seen.insert(path.canonicalize().map_err(io)?) {
                found.push(path);
            }
        }
    }
    if found.is_empty() {
        return Err(ReversePiiError::NoFiles { given: given.join(" ") });
    }
    for path in &found {
        search::check_readable(path)?;
    }
    Ok(found)
}

fn expanded(text: &str) -> Result<Vec<PathBuf>, ReversePiiError> {
    let paths = glob::glob(text).map_err(|error| ReversePiiError::Flag {
        flag: "JSONL_GLOB",
        problem: format!("{} is no pattern: {}", forgelm_artifact::Quoted(text), error.msg),
    })?;
    paths
        .map(|path| {
            path.map_err(|error| {
                let path = error.path().to_owned();
                OpenError::Io { path, source: error.into() }.into()
            })
        })
        .collect()
}

const fn scan_mode(salt_source: Option<SaltSource>) -> &'static str {
    match salt_source {
        None => "plaintext",
        Some(_) => "hash",
    }
}

const fn salt_source(salt_source: Option<SaltSource>) -> &'static str {
    match salt_source {
        None => "plaintext",
        Some(source) => source.as_str(),
    }
}

impl FoundPii {
    fn n_matches(&self) -> usize {
        self.files.iter().map(|(_, matches)| matches.len()).sum()
    }

    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let matches = self.files.iter().flat_map(|(path, matches)| {
            matches.iter().map(move |found| {
                let snippet = self.has_snippets.then_some(&found.snippet);
                json!({"file": path, "line": found.line, "snippet": snippet})
            })
        });
        let scanned = self.files.iter();
        let scanned =
            scanned.map(|(path, matches)| json!({"path": path, "match_count": matches.len()}));
        json!({
            "success": true,
            "query_hash": self.query_hash,
            "hash_scheme": HASH_SCHEME,
            "identifier_type": self.kind.as_str(),
            "scan_mode": scan_mode(self.salt_source),
            "salt_source": salt_source(self.salt_source),
            "matches": matches.collect::<Vec<_>>(),
            "files_scanned": scanned.collect::<Vec<_>>(),
            "match_count": self.n_matches(),
        })
    }

    /// The lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (path, matches) in &self.files {
            for found in matches {
                let at = format!("{}:{}", path.display(), found.line);
                let _ = match self.has_snippets {
                    true => writeln!(text, "{at}: {}", found.snippet),
                    false => writeln!(text, "{at}"),
                };
            }
        }
        let (n, n_files) = (self.n_matches(), self.files.len());
        let lines = if n == 1 { "line" } else { "lines" };
        let files = if n_files == 1 { "file" } else { "files" };
        let _ = writeln!(text, "{n} {lines} in {n_files} {files}; recorded as {}", self.query_hash);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{IdentifierKind, ReversePiiRequest, reverse_pii};
    use crate::environment::tests::nobody;
    use crate::error::RunError;
    use crate::event::{Event, Observer};
    use forgelm_artifact::write;

    struct Silent;

    impl Observer for Silent {
        fn observe(&mut self, _event: &Event) {}
    }

    #[test]
    fn a_question_that_nobody_asked_is_not_answered() {
        let dir = tempfile::tempdir().expect("a folder");
        write::atomic(&dir.path().join("rows.jsonl"), b"{\"id\": \"eve\"}\n").expect("written");
        let request = ReversePiiRequest {
            files: vec![dir.path().join("*.jsonl").display().to_string()],
            query: "eve".to_owned(),
            kind: IdentifierKind::Literal,
            salt_source: None,
            output_dir: None,
            audit_dir: None,
            has_snippets: true,
        };
        let mut env = nobody(dir.path());
        let refused = reverse_pii(&request, &env, &mut Silent);
        assert!(matches!(refused, Err(RunError::Operator(_))));
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("listed").count(),
            1,
            "nothing was written"
        );
        env.allow_anonymous_operator = true;
        let found = reverse_pii(&request, &env, &mut Silent).expect("answered");
        assert_eq!(found.to_json()["match_count"], 1);
    }
}
