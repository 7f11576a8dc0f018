//! Writing the audit log.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::write::{self, AppendLog, WriteError};
use forgelm_artifact::{Clock, Disk};
use zeroize::Zeroizing;

use super::event::AuditEvent;
use super::genesis::{self, Found, Genesis};
use super::head::HeadSigner;
use super::line::{Envelope, build, derive_hmac_key};
use super::recovery;
use super::scan::scan;
use super::{GENESIS, GENESIS_FILE, LINE_BYTES_MAX, LOG_FILE};
use crate::digest::{Digest32, sha256, sha256_hex};
use crate::keys::KeyError;
use crate::secret::Secret;

/// Who writes.
pub struct AuditIdentity {
    /// The run.
    pub run_id: String,
    /// The operator, from [`super::operator::resolve_operator`].
    pub operator: String,
    /// The secret of the per-line HMAC; `None` turns it off.
    pub secret: Option<Secret>,
    /// Whether a new chain may be started where the genesis manifest contradicts the log
    /// (`FORGELM_ALLOW_AUDIT_REROOT` is exactly `1`).
    pub allow_reroot: bool,
}

/// Why something could not be recorded. The action that needs the record must not happen then.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Writing failed.
    #[error(transparent)]
    Write(WriteError),
    /// Opening for reading failed.
    #[error(transparent)]
    Open(OpenError),
    /// Reading failed.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A genesis manifest is there, but its log is gone or empty, or it cannot be read.
    #[error(
        "{}: {found}, so the audit log was removed or replaced\n  hint: restore the log; to start \
         a new chain on purpose set FORGELM_ALLOW_AUDIT_REROOT=1",
        .path.display()
    )]
    GenesisContradicts {
        /// The genesis manifest.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The last line is not an audit record.
    #[error("{}: the last line is not an audit record; nothing is appended to it", .path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
    },
    /// Some lines would have a tag and others none.
    #[error(
        "{}: {found}; a log is tagged as a whole or not at all\n  hint: {hint}",
        .path.display()
    )]
    MixedTags {
        /// The log.
        path: PathBuf,
        /// What the last line and this writer have.
        found: &'static str,
        /// The way out.
        hint: &'static str,
    },
    /// A payload tried to set a key of the envelope.
    #[error("the payload of `{event}` sets the reserved key `{key}`")]
    ReservedKey {
        /// The event.
        event: &'static str,
        /// The key.
        key: String,
    },
    /// The head cannot be signed.
    #[error(transparent)]
    Key(KeyError),
    /// One record is larger than a reader accepts.
    #[error("the record of `{event}` is {size_bytes} bytes; expected at most {LINE_BYTES_MAX}")]
    LineTooLong {
        /// The event.
        event: &'static str,
        /// Its size.
        size_bytes: usize,
    },
}

impl AuditError {
    /// Whether the user has to change something (exit 1) rather than the world having refused
    /// (exit 2, or 8 for a full disk: see [`WriteError::class`]).
    #[must_use]
    pub const fn is_config(&self) -> bool {
        match self {
            Self::GenesisContradicts { .. } | Self::MixedTags { .. } => true,
            Self::Write(_)
            | Self::Open(_)
            | Self::Read { .. }
            | Self::Damaged { .. }
            | Self::ReservedKey { .. }
            | Self::Key(_)
            | Self::LineTooLong { .. } => false,
        }
    }
}

/// An open audit log. Nothing is locked between two appends.
pub struct AuditLog {
    disk: Disk,
    dir: PathBuf,
    run_id: String,
    operator: String,
    allow_reroot: bool,
    hmac_key: Option<Zeroizing<Digest32>>,
    clock: Arc<dyn Clock>,
    head_sha256: Option<String>,
    head_signer: Option<HeadSigner>,
    n_unsigned: u64,
}

/// The last line of a log, under the lock.
struct Head {
    sha256: String,
    is_first: bool,
    is_tagged: bool,
    run_id: String,
}

impl AuditLog {
    /// Opens the log of `dir`, creating the folder if needed, and repairs a torn last line (with a
    /// record of it).
    ///
    /// # Errors
    /// [`AuditError`]; a genesis manifest without its log is refused here, before any work.
    pub fn open(
        dir: &Path,
        identity: AuditIdentity,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        Self::open_on(&Disk::real(), dir, identity, clock)
    }

    /// [`AuditLog::open`] on a given disk.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_on(
        disk: &Disk,
        dir: &Path,
        identity: AuditIdentity,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        write::create_dir_all_durable_on(disk, dir).map_err(AuditError::Write)?;
        let hmac_key = identity.secret.as_ref().map(|s| derive_hmac_key(s, &identity.run_id));
        let mut log = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            run_id: identity.run_id,
            operator: identity.operator,
            allow_reroot: identity.allow_reroot,
            hmac_key,
            clock,
            head_sha256: None,
            head_signer: None,
            n_unsigned: 0,
        };
        if recovery::is_due(dir)? {
            log.recover()?;
        }
        let is_empty = dir.join(LOG_FILE).metadata().map_or(0, |m| m.len()) == 0;
        if is_empty {
            log.check_genesis()?;
        } else {
            let file = log.locked()?;
            log.head_sha256 = log.head(&file)?.map(|head| head.sha256);
        }
        Ok(log)
    }

    /// The log's file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(LOG_FILE)
    }

    /// The run that this writer records for.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// The operator in every record.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// SHA-256 of the last line this writer has seen; `None` before the first.
    #[must_use]
    pub fn head_sha256(&self) -> Option<&str> {
        self.head_sha256.as_deref()
    }

    /// Signs the head within the log as lines are appended.
    pub fn sign_heads(&mut self, signer: HeadSigner) {
        self.head_signer = Some(signer);
    }

    /// Appends `event`; when this returns `Ok`, it is on the disk.
    ///
    /// # Errors
    /// [`AuditError`]; the log is as it was before, or ends with a torn line that the next open
    /// repairs.
    pub fn append(&mut self, event: &AuditEvent) -> Result<(), AuditError> {
        let mut file = match AppendLog::open_on(&self.disk, &self.path()) {
            Err(WriteError::TornLine { .. }) => {
                self.recover()?;
                self.locked()?
            }
            other => other.map_err(AuditError::Write)?,
        };
        self.append_to(&mut file, event)?;
        self.n_unsigned += 1;
        let due = self.head_signer.as_ref().filter(|signer| self.n_unsigned >= signer.every);
        let Some(signer) = due.cloned() else { return Ok(()) };
        let (entries, head) = (self.n_lines()?, self.head_of(&file)?);
        let checkpoint = signer.event(entries, &head).map_err(AuditError::Key)?;
        self.append_to(&mut file, &checkpoint)?;
        self.n_unsigned = 0;
        Ok(())
    }

    /// Lines of the log, which is locked.
    fn n_lines(&self) -> Result<u64, AuditError> {
        let path = self.path();
        let unreadable = |source| AuditError::Read { path: path.clone(), source };
        let (mut file, _) = open::regular(&path).map_err(AuditError::Open)?;
        let mut piece = vec![0; 1 << 16];
        let mut n_lines = 0;
        loop {
            let n = file.read(&mut piece).map_err(unreadable)?;
            if n == 0 {
                return Ok(n_lines);
            }
            n_lines += piece[..n].iter().filter(|&&b| b == b'\n').count() as u64;
        }
    }

    /// Digest of the last line of the log, which is locked and has one.
    fn head_of(&self, file: &AppendLog) -> Result<Digest32, AuditError> {
        let line = file.last_line().map_err(AuditError::Write)?;
        line.map(|line| sha256(&line)).ok_or_else(|| AuditError::Damaged { path: self.path() })
    }

    fn locked(&self) -> Result<AppendLog, AuditError> {
        AppendLog::open_on(&self.disk, &self.path()).map_err(AuditError::Write)
    }

    fn recover(&mut self) -> Result<(), AuditError> {
        let (mut file, event) = recovery::begin(&self.disk, &self.dir)?;
        if let Some(event) = event {
            self.append_to(&mut file, &event)?;
        }
        recovery::finish(&self.disk, &self.dir)
    }

    /// Appends under the lock that `file` holds.
    fn append_to(&mut self, file: &mut AppendLog, event: &AuditEvent) -> Result<(), AuditError> {
        let head = self.head(file)?;
        match &head {
            None => self.check_genesis()?,
            Some(head) => self.check_tags(head)?,
        }
        if let Some(first) = head.as_ref().filter(|head| head.is_first) {
            // A crash between the first line and its manifest: complete it now.
            if matches!(genesis::read(&self.dir), Found::Absent) {
                self.write_genesis(first.run_id.clone(), first.sha256.clone())?;
            }
        }
        let timestamp = self.clock.utc().to_string();
        let envelope = Envelope {
            timestamp: &timestamp,
            run_id: &self.run_id,
            operator: &self.operator,
            event: event.name(),
            prev_hash: head.as_ref().map_or(GENESIS, |head| &head.sha256),
        };
        let line = build(&envelope, &event.payload(), self.hmac_key.as_deref())
            .map_err(|key| AuditError::ReservedKey { event: event.name(), key })?;
        if line.len() > LINE_BYTES_MAX {
            let size_bytes = line.len();
            return Err(AuditError::LineTooLong { event: event.name(), size_bytes });
        }
        file.append_line(&line).map_err(AuditError::Write)?;
        let sha256 = sha256_hex(line.as_bytes());
        if head.is_none() {
            self.write_genesis(self.run_id.clone(), sha256.clone())?;
        }
        self.head_sha256 = Some(sha256);
        Ok(())
    }

    fn head(&self, file: &AppendLog) -> Result<Option<Head>, AuditError> {
        let Some(line) = file.last_line().map_err(AuditError::Write)? else { return Ok(None) };
        let damaged = || AuditError::Damaged { path: self.path() };
        let facts = scan(&line).map_err(|_| damaged())?;
        Ok(Some(Head {
            sha256: sha256_hex(&line),
            is_first: facts.prev_hash.ok_or_else(damaged)? == GENESIS,
            is_tagged: facts.hmac.is_some(),
            run_id: facts.run_id.ok_or_else(damaged)?.to_owned(),
        }))
    }

    fn check_tags(&self, head: &Head) -> Result<(), AuditError> {
        let (found, hint) = match (head.is_tagged, self.hmac_key.is_some()) {
            (true, false) => (
                "the last line has an HMAC, and no secret is set",
                "set FORGELM_AUDIT_SECRET to the secret of this log",
            ),
            (false, true) => (
                "the last line has no HMAC, and a secret is set",
                "unset FORGELM_AUDIT_SECRET, or use a new output folder",
            ),
            (true, true) | (false, false) => return Ok(()),
        };
        Err(AuditError::MixedTags { path: self.path(), found, hint })
    }

    /// The chain would start anew: may it?
    fn check_genesis(&self) -> Result<(), AuditError> {
        let found = match genesis::read(&self.dir) {
            Found::Absent => return Ok(()),
            Found::Unusable(reason) => format!("cannot be used ({reason})"),
            Found::Manifest(_) => "the log it names is absent or empty".to_owned(),
        };
        if self.allow_reroot {
            return Ok(());
        }
        Err(AuditError::GenesisContradicts { path: self.dir.join(GENESIS_FILE), found })
    }

    fn write_genesis(&self, run_id: String, first_entry_sha256: String) -> Result<(), AuditError> {
        let genesis = Genesis { run_id, first_entry_sha256 };
        genesis::write(&self.disk, &self.dir, &genesis, self.clock.utc())
    }
}
