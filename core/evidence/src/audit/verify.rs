//! Verifying an audit log: one pass, a few mebibytes of lines in memory at a time.
//!
//! It checks the chain over the raw bytes, the HMACs, the genesis manifest, and any signed
//! checkpoints it is given. It does not check the order of time stamps or the vocabulary of events.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use forgelm_artifact::open::{self, OpenError};
use zeroize::Zeroizing;

use super::genesis::{self, Found};
use super::head::{CHECKPOINT_EVENT, SignedHead};
use super::line::derive_hmac_key;
use super::scan::{LineFacts, LineProblem, scan};
use super::{GENESIS, GENESIS_FILE, LINE_BYTES_MAX};
use crate::class::Class;
use crate::digest::{Digest32, equal_in_constant_time, hex, hmac_sha256, sha256, unhex32};
use crate::keys::trust::{TrustedKeys, Usage};
use crate::secret::Secret;

/// Bytes of a log that are read at once.
const PIECE_BYTES: usize = 4 << 20;

/// Fewer bytes are not worth a thread.
const BYTES_OF_A_THREAD: usize = 64 << 10;

const LINE_TOO_LONG: &str = "the line is longer than 16 MiB";

/// A head that a log must contain: after `entries` lines the hash of the last is `head_sha256`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedHead {
    /// Number of lines.
    pub entries: u64,
    /// SHA-256 of line `entries`, 64 hex characters.
    pub head_sha256: String,
    /// Where this is known from, for the message.
    pub source: String,
}

/// What is asked of the log.
#[derive(Clone, Default)]
pub struct AuditOptions<'a> {
    /// The secret of the HMACs, if known.
    pub secret: Option<&'a Secret>,
    /// Whether every line must have a valid HMAC.
    pub require_hmac: bool,
    /// Heads of checkpoints.
    pub expected_heads: Vec<ExpectedHead>,
    /// Keys whose signed heads within the log are checked.
    pub keys: Option<&'a TrustedKeys>,
}

/// A log that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditAccepted {
    /// Number of lines.
    pub entries: u64,
    /// Lines whose HMAC was checked: 0 without a secret, else all or none.
    pub hmac_verified: u64,
    /// SHA-256 of the last line.
    pub head_sha256: String,
    /// SHA-256 of the first line.
    pub genesis_sha256: String,
    /// Time of the first line, as written.
    pub first_timestamp: String,
    /// Time of the last line, as written.
    pub last_timestamp: String,
    /// Signed heads within the log whose signature was checked.
    pub checkpoints_verified: u64,
    /// Things to know that are no failure.
    pub notes: Vec<String>,
}

/// Why a log is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuditRejection {
    /// No such file, or not a regular file.
    #[error("{}: {found}", .path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// HMACs are required but no secret is known.
    #[error("HMACs are required, but no secret is set\n  hint: set FORGELM_AUDIT_SECRET")]
    NoSecret,
    /// No lines, and no genesis manifest that says there were some.
    #[error("{}: the log has no entries", .path.display())]
    Empty {
        /// The log.
        path: PathBuf,
    },
    /// A line is larger or deeper than any record, so it was not compared.
    #[error("{}:{line}: {limit}", .path.display())]
    Oversize {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The limit that is exceeded.
        limit: &'static str,
    },
    /// Reading failed.
    #[error("{}: cannot be read", .path.display())]
    Unreadable {
        /// The log.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Compared and different, at a line.
    #[error("{}:{line}: {reason}", .path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What differs.
        reason: String,
    },
    /// Compared and different, as a whole.
    #[error("{}: {reason}", .path.display())]
    Log {
        /// The log, or the genesis manifest.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

impl AuditRejection {
    /// The exit class.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } | Self::NoSecret | Self::Empty { .. } | Self::Oversize { .. } => {
                Class::NotCompared
            }
            Self::Unreadable { .. } => Class::Unreadable,
            Self::Line { .. } | Self::Log { .. } => Class::Different,
        }
    }

    /// The line that failed, if one did.
    #[must_use]
    pub const fn line(&self) -> Option<u64> {
        match self {
            Self::Line { line, .. } | Self::Oversize { line, .. } => Some(*line),
            Self::NotFound { .. }
            | Self::NoSecret
            | Self::Empty { .. }
            | Self::Unreadable { .. }
            | Self::Log { .. } => None,
        }
    }
}

/// Verifies the log at `path`, with the genesis manifest beside it.
///
/// # Errors
/// [`AuditRejection`]: the first thing that fails.
pub fn verify_audit(
    path: &Path,
    options: &AuditOptions<'_>,
) -> Result<AuditAccepted, AuditRejection> {
    if options.require_hmac && options.secret.is_none() {
        return Err(AuditRejection::NoSecret);
    }
    let (file, _) = open::unlinked(path).map_err(|e| open_rejection(path, e))?;
    let mut walk = Walk::new(path, options);
    walk.read(file)?;
    let walked = walk.finish()?;
    check_genesis(path, walked)
}

fn open_rejection(path: &Path, error: OpenError) -> AuditRejection {
    let path = path.to_owned();
    match error {
        OpenError::NotAFile { kind, .. } => {
            AuditRejection::NotFound { path, found: format!("is a {kind}; expected a file") }
        }
        OpenError::Io { source, .. }
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            AuditRejection::NotFound { path, found: "no such file".to_owned() }
        }
        OpenError::Io { source, .. } => AuditRejection::Unreadable { path, source },
    }
}

/// What can be said of a line by itself.
struct Looked<'a> {
    line: &'a [u8],
    facts: Result<LineFacts<'a>, LineProblem>,
    prev_sha256: Option<Digest32>,
    sha256: Digest32,
}

impl<'a> Looked<'a> {
    /// The lines of a part, each of which has an end.
    fn at_all(part: &'a [u8]) -> Vec<Self> {
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', part);
        ends.map(|end| Self::at(&part[std::mem::replace(&mut start, end + 1)..end])).collect()
    }

    fn at(line: &'a [u8]) -> Self {
        let facts = scan(line);
        let prev = facts.as_ref().ok().and_then(|facts| facts.prev_hash);
        let prev_sha256 = prev.and_then(|prev| unhex32(prev.as_bytes()));
        Self { line, facts, prev_sha256, sha256: sha256(line) }
    }
}

struct Walked {
    accepted: Option<AuditAccepted>,
    first_run_id: String,
}

struct Walk<'a> {
    path: &'a Path,
    options: &'a AuditOptions<'a>,
    entries: u64,
    hmac_verified: u64,
    is_tagged: bool,
    head: Option<Digest32>,
    genesis: Digest32,
    first_run_id: String,
    first_timestamp: String,
    last_timestamp: String,
    hmac_key: Option<(String, Zeroizing<Digest32>)>,
    checkpoints_verified: u64,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path, options: &'a AuditOptions<'a>) -> Self {
        Self {
            path,
            options,
            entries: 0,
            hmac_verified: 0,
            is_tagged: false,
            head: None,
            genesis: [0; 32],
            first_run_id: String::new(),
            first_timestamp: String::new(),
            last_timestamp: String::new(),
            hmac_key: None,
            checkpoints_verified: 0,
        }
    }

    fn different(&self, reason: impl Into<String>) -> AuditRejection {
        AuditRejection::Line {
            path: self.path.to_owned(),
            line: self.entries + 1,
            reason: reason.into(),
        }
    }

    fn oversize(&self, limit: &'static str) -> AuditRejection {
        AuditRejection::Oversize { path: self.path.to_owned(), line: self.entries + 1, limit }
    }

    /// Reads the log in pieces of whole lines: the lines of a piece are looked at on all threads, and
    /// linked in their order.
    fn read(&mut self, mut file: File) -> Result<(), AuditRejection> {
        let n_threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
        loop {
            let n_read = file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(
                |source| AuditRejection::Unreadable { path: self.path.to_owned(), source },
            )?;
            let n_whole = piece.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
            self.lines(&piece[..n_whole], n_threads)?;
            piece.drain(..n_whole);
            if piece.len() > LINE_BYTES_MAX {
                return Err(self.oversize(LINE_TOO_LONG));
            }
            if n_read == 0 {
                return match piece.is_empty() {
                    true => Ok(()),
                    false => Err(self.different(
                        "the last line is torn (no line end); the next run in this folder \
                         repairs it with a record of the torn bytes",
                    )),
                };
            }
        }
    }

    /// Whole lines.
    fn lines(&mut self, mut bytes: &[u8], n_threads: usize) -> Result<(), AuditRejection> {
        let n_threads = n_threads.min(bytes.len() / BYTES_OF_A_THREAD).max(1);
        let share = bytes.len().div_ceil(n_threads);
        let mut parts = Vec::with_capacity(n_threads);
        while !bytes.is_empty() {
            let from = share.min(bytes.len()) - 1;
            let end = bytes[from..]
                .iter()
                .position(|&b| b == b'\n')
                .map_or(bytes.len(), |at| from + at + 1);
            let (part, rest) = bytes.split_at(end);
            parts.push(part);
            bytes = rest;
        }
        let looked: Vec<Vec<Looked<'_>>> = std::thread::scope(|scope| {
            let others: Vec<_> =
                parts.iter().skip(1).map(|part| scope.spawn(|| Looked::at_all(part))).collect();
            let mine = parts.first().map(|part| Looked::at_all(part));
            let joined = others.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            mine.into_iter().chain(joined).collect()
        });
        looked.into_iter().flatten().try_for_each(|looked| self.line(looked))
    }

    fn line(&mut self, looked: Looked<'_>) -> Result<(), AuditRejection> {
        let line = looked.line;
        if line.len() > LINE_BYTES_MAX {
            return Err(self.oversize(LINE_TOO_LONG));
        }
        if line.is_empty() {
            return Err(self.different("a blank line"));
        }
        if line.last() == Some(&b'\r') {
            return Err(self.different("the line ends with a carriage return"));
        }
        let facts = looked.facts.map_err(|problem| match problem {
            LineProblem::NotUtf8 => self.different("not UTF-8"),
            LineProblem::NotJson => self.different("not valid JSON"),
            LineProblem::NotObject => self.different("not a JSON object"),
            LineProblem::DuplicateKey => self.different("a key appears twice"),
            LineProblem::TooDeep => self.oversize("nested more than 64 levels deep"),
        })?;
        self.check_link(&facts, looked.prev_sha256)?;
        self.check_tag(line, &facts)?;
        if facts.event == Some(CHECKPOINT_EVENT) {
            self.check_checkpoint(line)?;
        }
        let head = looked.sha256;
        if self.entries == 0 {
            self.genesis = head;
            self.first_run_id = facts.run_id.unwrap_or_default().to_owned();
            self.first_timestamp = facts.timestamp.unwrap_or_default().to_owned();
        }
        self.last_timestamp.clear();
        self.last_timestamp.push_str(facts.timestamp.unwrap_or_default());
        self.head = Some(head);
        for expected in &self.options.expected_heads {
            if expected.entries == self.entries + 1 && expected.head_sha256 != hex(&head) {
                let source = &expected.source;
                return Err(
                    self.different(format!("not the line that {source} signed as its head"))
                );
            }
        }
        self.entries += 1;
        Ok(())
    }

    fn check_link(
        &self,
        facts: &LineFacts<'_>,
        prev_sha256: Option<Digest32>,
    ) -> Result<(), AuditRejection> {
        let Some(prev_hash) = facts.prev_hash else {
            return Err(self.different("no `prev_hash`"));
        };
        let agrees = match &self.head {
            None => prev_hash == GENESIS,
            Some(_) => prev_sha256 == self.head,
        };
        if agrees {
            return Ok(());
        }
        let expected = self.head.map_or_else(|| GENESIS.to_owned(), |head| hex(&head));
        let shown: String = prev_hash.chars().take(64).collect();
        Err(self
            .different(format!("the chain is broken: `prev_hash` is {shown}; expected {expected}")))
    }

    /// A signed head within the log: it must be that of the lines before it. A signature by a key that
    /// is not known here says nothing; one by a known key that does not hold is a forgery.
    fn check_checkpoint(&mut self, line: &[u8]) -> Result<(), AuditRejection> {
        let Ok(claim) = SignedHead::parse(line) else {
            return Err(self.different("a checkpoint without `entries`, `head_sha256` or `sig`"));
        };
        if claim.entries != self.entries || Some(claim.head_sha256) != self.head {
            return Err(
                self.different("a checkpoint of another head than that of the lines before")
            );
        }
        let key = self.options.keys.and_then(|keys| keys.find(&claim.keyid));
        let Some(key) =
            key.filter(|key| key.usages.contains(&Usage::Checkpoint) && key.revocation.is_none())
        else {
            return Ok(());
        };
        if !key.public_key.verifies(&claim.message(), &claim.sig) {
            return Err(self.different("a checkpoint whose signature does not hold"));
        }
        self.checkpoints_verified += 1;
        Ok(())
    }

    fn check_tag(&mut self, line: &[u8], facts: &LineFacts<'_>) -> Result<(), AuditRejection> {
        if self.entries == 0 {
            self.is_tagged = facts.hmac.is_some();
        }
        if facts.hmac.is_some() != self.is_tagged {
            return Err(self.different("some lines have an `_hmac` and others have none"));
        }
        let Some((tag, cut)) = facts.hmac else {
            return if self.options.require_hmac {
                Err(self.different("no `_hmac`, and HMACs are required"))
            } else {
                Ok(())
            };
        };
        let Some(secret) = self.options.secret else { return Ok(()) };
        let Some(run_id) = facts.run_id else {
            return Err(self.different("no `run_id` to derive the HMAC key from"));
        };
        let Some(cut) = cut else {
            return Err(self.different("`_hmac` is not the last member, as the writer puts it"));
        };
        if self.hmac_key.as_ref().is_none_or(|(of, _)| of != run_id) {
            let text: String = serde_json::from_str(&format!("\"{run_id}\""))
                .map_err(|_| self.different("`run_id` is not text"))?;
            self.hmac_key = Some((run_id.to_owned(), derive_hmac_key(secret, &text)));
        }
        let good = self.hmac_key.as_ref().is_some_and(|(_, key)| {
            let expected = hmac_sha256(key, &[&line[..cut], b"}"]);
            unhex32(tag.as_bytes()).is_some_and(|tag| equal_in_constant_time(&tag, &expected))
        });
        if !good {
            return Err(self.different("the HMAC does not match"));
        }
        self.hmac_verified += 1;
        Ok(())
    }

    fn finish(self) -> Result<Walked, AuditRejection> {
        let mut notes = Vec::new();
        for expected in &self.options.expected_heads {
            if expected.entries > self.entries {
                let reason = format!(
                    "{} entries; {} signed {}: entries were removed from the end",
                    self.entries, expected.source, expected.entries
                );
                return Err(AuditRejection::Log { path: self.path.to_owned(), reason });
            }
        }
        if let Some(newest) = self.options.expected_heads.iter().map(|e| e.entries).max() {
            let tail = self.entries - newest;
            if tail > 0 {
                notes.push(format!("{tail} entries after the newest signed checkpoint"));
            }
        }
        if self.is_tagged && self.options.secret.is_none() {
            notes.push("the lines have HMACs that were not checked: no secret is set".to_owned());
        }
        let accepted = self.head.map(|head| AuditAccepted {
            entries: self.entries,
            hmac_verified: self.hmac_verified,
            head_sha256: hex(&head),
            genesis_sha256: hex(&self.genesis),
            first_timestamp: self.first_timestamp,
            last_timestamp: self.last_timestamp,
            checkpoints_verified: self.checkpoints_verified,
            notes,
        });
        Ok(Walked { accepted, first_run_id: self.first_run_id })
    }
}

fn check_genesis(path: &Path, walked: Walked) -> Result<AuditAccepted, AuditRejection> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The manifest belongs to the log of that name; a copy under another name has none.
    let found = match path.file_name() {
        Some(name) if name == super::LOG_FILE => genesis::read(dir),
        _ => Found::Absent,
    };
    let manifest = dir.join(GENESIS_FILE);
    let different = |reason: String| AuditRejection::Log { path: manifest.clone(), reason };
    match (walked.accepted, found) {
        (None, Found::Absent) => Err(AuditRejection::Empty { path: path.to_owned() }),
        (None, Found::Manifest(_) | Found::Unusable(_)) => {
            Err(different("there is a genesis manifest, but the log has no entries".to_owned()))
        }
        (Some(_), Found::Unusable(reason)) => {
            Err(different(format!("the genesis manifest cannot be used: {reason}")))
        }
        (Some(mut accepted), Found::Absent) => {
            accepted.notes.push("no genesis manifest beside the log".to_owned());
            Ok(accepted)
        }
        (Some(accepted), Found::Manifest(genesis)) => {
            if genesis.first_entry_sha256 != accepted.genesis_sha256 {
                return Err(different("`first_entry_sha256` is not that of line 1".to_owned()));
            }
            if genesis.run_id != walked.first_run_id {
                return Err(different("`run_id` is not that of line 1".to_owned()));
            }
            Ok(accepted)
        }
    }
}
