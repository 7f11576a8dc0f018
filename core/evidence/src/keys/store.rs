//! Changing a trust store: keys are added, revoked and followed by others; none is ever taken out.
//!
//! Each change reads the file, changes it and writes it whole, under a lock of its folder, so that
//! two that happen at once are both in it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::{self, WriteError};
use forgelm_artifact::{Quoted, UtcTime};
use serde_json::{Map, Value, json};

use super::succession::{self, Saying};
use super::trust::{Revocation, TrustError, TrustedKey, TrustedKeys, Usage};
use super::{KeyError, KeyId, RunSigner, SigningKey};
use crate::text::pretty_json;

/// Fewer characters of a key id name no key.
const PREFIX_MIN: usize = 8;

/// Why a store was not changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// It cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The key gave no signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Its folder cannot be locked.
    #[error("{}: cannot be locked", .path.display())]
    Lock {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Nothing, or more than one key, is called so.
    #[error(
        "{wanted} names {n_found} keys of the store; expected one\n  hint: a key id, its first {PREFIX_MIN} digits or more, or a label; `forgelm keys list` shows them"
    )]
    Name {
        /// As given, quoted.
        wanted: String,
        /// How many are called so.
        n_found: usize,
    },
    /// It is there.
    #[error("key {keyid} is in the store already\n  hint: `forgelm keys show {keyid}`")]
    Known {
        /// The key.
        keyid: KeyId,
    },
    /// The dates contradict each other.
    #[error("key {keyid} would be valid until {not_after} and from {not_before}: never")]
    NeverValid {
        /// The key.
        keyid: KeyId,
        /// Valid from.
        not_before: UtcTime,
        /// Valid until.
        not_after: UtcTime,
    },
    /// It is revoked, at least as strongly as asked for.
    #[error("key {keyid} was revoked at {at} as {reason}; that is never taken back")]
    Revoked {
        /// The key.
        keyid: KeyId,
        /// When.
        at: UtcTime,
        /// Why, quoted.
        reason: String,
    },
    /// Another key follows it already.
    #[error("key {keyid} is followed by {successor} already")]
    Followed {
        /// The key.
        keyid: KeyId,
        /// What follows it.
        successor: KeyId,
    },
    /// Old and new key are one.
    #[error("key {keyid} cannot follow itself; expected two keys")]
    Same {
        /// The key.
        keyid: KeyId,
    },
    /// The signer of a statement is not in the store.
    #[error("key {keyid}, which is to sign this, is not in the store, or is revoked itself")]
    Signer {
        /// The key.
        keyid: KeyId,
    },
}

impl KeyStoreError {
    /// Whether the world refused (exit 2) rather than the user having asked for something wrong
    /// (exit 1).
    #[must_use]
    pub fn is_runtime(&self) -> bool {
        match self {
            Self::Write(_) | Self::Lock { .. } => true,
            Self::Key(error) => error.is_runtime(),
            Self::Trust(error) => error.is_runtime(),
            Self::Name { .. }
            | Self::Known { .. }
            | Self::NeverValid { .. }
            | Self::Revoked { .. }
            | Self::Followed { .. }
            | Self::Same { .. }
            | Self::Signer { .. } => false,
        }
    }
}

/// Changes the store at `path`; one that is not there is begun if `may_begin`.
///
/// # Errors
/// [`KeyStoreError`]; the file is as it was then.
pub fn change<T>(
    path: &Path,
    may_begin: bool,
    change: impl FnOnce(&mut TrustedKeys) -> Result<T, KeyStoreError>,
) -> Result<T, KeyStoreError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let lock = |source| KeyStoreError::Lock { path: folder.to_owned(), source };
    let guard = File::open(folder).map_err(lock)?;
    guard.lock().map_err(lock)?;
    let mut store = match TrustedKeys::load(path) {
        Err(TrustError::Open(OpenError::Io { source, .. }))
            if may_begin && source.kind() == ErrorKind::NotFound =>
        {
            TrustedKeys::default()
        }
        other => other?,
    };
    let done = change(&mut store)?;
    let bytes = pretty_json(&store.to_json());
    // What is written is what a verifier reads: never a store that it would refuse.
    TrustedKeys::parse(&bytes, &path.display().to_string())?;
    write::atomic(path, &bytes)?;
    Ok(done)
}

impl TrustedKey {
    /// The entry of a store.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let time = |at: Option<UtcTime>| at.map(|at| at.to_string());
        json!({
            "keyid": self.keyid.as_str(),
            "public_key": STANDARD.encode(self.public_key.to_bytes()),
            "label": self.label,
            "usages": self.usages.iter().map(|usage| usage.word()).collect::<Vec<_>>(),
            "not_before": time(self.not_before),
            "not_after": time(self.not_after),
            "revoked_at": time(self.revocation.as_ref().map(|r| r.at)),
            "revocation_reason": self.revocation.as_ref().map(|r| &r.reason),
            "successor": self.successor.as_ref().map(KeyId::as_str),
        })
    }

    /// Whether it may sign at `now`, in a word.
    #[must_use]
    pub fn state(&self, now: UtcTime) -> &'static str {
        if self.revocation.as_ref().is_some_and(|r| !r.keeps_earlier || r.at <= now) {
            "revoked"
        } else if self.not_before.is_some_and(|at| now < at) {
            "not_yet_valid"
        } else if self.not_after.is_some_and(|at| now > at) {
            "expired"
        } else {
            "valid"
        }
    }
}

impl TrustedKeys {
    /// The document of the store.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut document = Map::new();
        document.insert("version".to_owned(), json!(1));
        let keys: Value = self.keys().iter().map(TrustedKey::to_json).collect();
        document.insert("keys".to_owned(), keys);
        let thresholds = self.thresholds().map(|(usage, n)| (usage.word().to_owned(), json!(n)));
        let thresholds: Map<String, Value> = thresholds.collect();
        if !thresholds.is_empty() {
            document.insert("thresholds".to_owned(), thresholds.into());
        }
        if !self.authorities().is_empty() {
            document.insert("tsa".to_owned(), self.authorities().to_pem().collect());
        }
        if !self.statements.is_empty() {
            let statements = self.statements.iter().map(crate::dsse::Envelope::to_json);
            document.insert("statements".to_owned(), statements.collect());
        }
        document.into()
    }

    /// The one key that is called so: an id, the first eight digits of one or more, or a label.
    ///
    /// # Errors
    /// [`KeyStoreError::Name`].
    pub fn named(&self, name: &str) -> Result<&TrustedKey, KeyStoreError> {
        let is_named = |key: &&TrustedKey| {
            let is_prefix = name.len() >= PREFIX_MIN && key.keyid.as_str().starts_with(name);
            is_prefix || key.label.as_deref() == Some(name)
        };
        let found: Vec<_> = self.keys().iter().filter(is_named).collect();
        match found[..] {
            [key] => Ok(key),
            _ => {
                let wanted = Quoted(name).to_string();
                Err(KeyStoreError::Name { wanted, n_found: found.len() })
            }
        }
    }

    /// Trusts a key from now on.
    ///
    /// # Errors
    /// If it is there already, or would never be valid.
    pub fn trust(&mut self, key: TrustedKey) -> Result<(), KeyStoreError> {
        let keyid = key.keyid.clone();
        if self.find(&keyid).is_some() {
            return Err(KeyStoreError::Known { keyid });
        }
        if let (Some(not_before), Some(not_after)) = (key.not_before, key.not_after)
            && not_before > not_after
        {
            return Err(KeyStoreError::NeverValid { keyid, not_before, not_after });
        }
        self.add(key);
        Ok(())
    }

    /// Revokes a key, with a signed statement if there is a signer. A revocation can be made
    /// stronger (earlier, or `compromised`), never weaker.
    ///
    /// # Errors
    /// If it is revoked so already, or the signer is not in the store.
    pub fn revoke(
        &mut self,
        keyid: &KeyId,
        revocation: Revocation,
        signer: Option<&RunSigner>,
        saying: &Saying<'_>,
    ) -> Result<(), KeyStoreError> {
        if let Some(before) = self.find(keyid).and_then(|key| key.revocation.as_ref())
            && (revocation.is_weaker_than(before) || revocation == *before)
        {
            let reason = Quoted(&before.reason).to_string();
            return Err(KeyStoreError::Revoked { keyid: keyid.clone(), at: before.at, reason });
        }
        if let Some(signer) = signer {
            let signer_id = signer.key.id();
            // A key may speak against itself, whoever else has it by now.
            let counts = |key: &TrustedKey| signer_id == *keyid || key.revocation.is_none();
            if !self.find(&signer_id).is_some_and(counts) {
                return Err(KeyStoreError::Signer { keyid: signer_id });
            }
            self.statements.push(succession::revocation(keyid, &revocation, signer, saying)?);
        }
        if let Some(key) = self.find_mut(keyid) {
            key.revocation = Some(revocation);
        }
        Ok(())
    }

    /// Lets the key `new` follow `old`, by a statement that both sign: `old` is trusted until
    /// `not_after`, `new` from now on for what `old` was. What `old` signed before stays valid.
    ///
    /// # Errors
    /// If `old` is not in the store, is revoked or is followed by another key already.
    pub fn rotate(
        &mut self,
        old: &SigningKey,
        new: &SigningKey,
        label: Option<String>,
        not_after: UtcTime,
        saying: &Saying<'_>,
    ) -> Result<Vec<Usage>, KeyStoreError> {
        let (old_id, new_id) = (old.id(), new.id());
        if old_id == new_id {
            return Err(KeyStoreError::Same { keyid: old_id });
        }
        let before = self.named(old_id.as_str())?.clone();
        for key in [Some(&before), self.find(&new_id)].into_iter().flatten() {
            if let Some(Revocation { at, reason, .. }) = &key.revocation {
                let reason = Quoted(reason).to_string();
                return Err(KeyStoreError::Revoked { keyid: key.keyid.clone(), at: *at, reason });
            }
        }
        if let Some(successor) = before.successor {
            return Err(KeyStoreError::Followed { keyid: old_id, successor });
        }
        let not_after = before.not_after.map_or(not_after, |limit| limit.min(not_after));
        if let Some(not_before) = before.not_before.filter(|from| *from > not_after) {
            return Err(KeyStoreError::NeverValid { keyid: old_id, not_before, not_after });
        }
        let usages: Vec<Usage> = before.usages.iter().copied().collect();
        if self.find(&new_id).is_none() {
            let mut entry = TrustedKey::unlimited(new.public(), label.or(before.label));
            entry.usages = before.usages;
            self.add(entry);
        }
        if let Some(key) = self.find_mut(&old_id) {
            key.not_after = Some(not_after);
            key.successor = Some(new_id);
        }
        self.statements.push(succession::succession(old, new, not_after, saying)?);
        Ok(usages)
    }
}

#[cfg(test)]
mod tests {
    use forgelm_artifact::UtcTime;
    use serde_json::{Value, json};

    use super::{KeyStoreError, change};
    use crate::documents::evidence::Builder;
    use crate::keys::succession::Saying;
    use crate::keys::trust::{Revocation, TrustedKey, TrustedKeys, Usage};
    use crate::keys::{KeyOrigin, RunSigner, SigningKey};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn at(text: &str) -> UtcTime {
        format!("{text}T00:00:00Z").parse().unwrap()
    }

    fn said<T>(with: impl FnOnce(&Saying<'_>) -> T) -> T {
        let builder = Builder { version: "1".to_owned(), commit: None, target: "t".to_owned() };
        with(&Saying { builder: &builder, now: at("2026-06-01") })
    }

    fn store() -> TrustedKeys {
        let mut store = TrustedKeys::default();
        let mut entry = TrustedKey::unlimited(key(1).public(), Some("ci".to_owned()));
        entry.usages = [Usage::Run, Usage::Checkpoint].into();
        store.trust(entry).unwrap();
        store.trust(TrustedKey::unlimited(key(2).public(), None)).unwrap();
        store
    }

    fn rotate(store: &mut TrustedKeys, old: u8, new: u8) -> Result<Vec<Usage>, KeyStoreError> {
        said(|saying| store.rotate(&key(old), &key(new), None, at("2026-07-01"), saying))
    }

    fn revoke(
        store: &mut TrustedKeys,
        (seed, reason, when): (u8, &str, &str),
        signer: Option<u8>,
    ) -> Result<(), KeyStoreError> {
        let signer = signer.map(|seed| RunSigner {
            key: key(seed),
            origin: KeyOrigin::Provisioned,
            label: None,
        });
        let revocation = Revocation::new(at(when), reason);
        said(|saying| store.revoke(&key(seed).id(), revocation, signer.as_ref(), saying))
    }

    fn read(document: &Value) -> Result<TrustedKeys, String> {
        TrustedKeys::parse(document.to_string().as_bytes(), "t.json").map_err(|e| e.to_string())
    }

    #[test]
    fn a_store_is_read_as_it_was_written() {
        let mut store = store();
        store.set_threshold(2);
        rotate(&mut store, 1, 3).unwrap();
        revoke(&mut store, (2, "compromised", "2026-05-01"), Some(3)).unwrap();
        assert_eq!(read(&store.to_json()).unwrap(), store);
        assert_eq!(store.statements.len(), 2);
        let successor = store.named("ci").err().unwrap();
        assert!(matches!(successor, KeyStoreError::Name { n_found: 2, .. }), "both are called so");
        let new = store.find(&key(3).id()).unwrap();
        assert_eq!(new.usages, [Usage::Run, Usage::Checkpoint].into());
    }

    #[test]
    fn a_store_that_contradicts_its_statements_is_refused() {
        let mut store = store();
        rotate(&mut store, 1, 3).unwrap();
        revoke(&mut store, (2, "compromised", "2026-05-01"), Some(1)).unwrap();
        let good = store.to_json();
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut document = good.clone();
            change(&mut document);
            read(&document).unwrap_err()
        };
        let cases = [
            (refused(&|s| s["keys"][0]["successor"] = Value::Null), "does not say that"),
            (refused(&|s| s["keys"][0]["not_after"] = json!("2027-01-01T00:00:00Z")), "for longer"),
            (
                refused(&|s| {
                    s["keys"][1]["revoked_at"] = Value::Null;
                    s["keys"][1]["revocation_reason"] = Value::Null;
                }),
                "is revoked",
            ),
            (refused(&|s| s["keys"][1]["revocation_reason"] = json!("retired")), "later or less"),
            (
                refused(&|s| s["keys"][1]["revoked_at"] = json!("2026-05-02T00:00:00Z")),
                "later or less",
            ),
            (
                refused(&|s| {
                    s["statements"][0]["signatures"].as_array_mut().unwrap().pop();
                }),
                "both keys must",
            ),
            (
                refused(&|s| {
                    let other = s["statements"][1]["payload"].clone();
                    s["statements"][0]["payload"] = other;
                }),
                "no key of the store signed it",
            ),
            (refused(&|s| s["statements"] = json!({})), "`statements` is not a list"),
        ];
        for (message, expected) in cases {
            assert!(message.starts_with("t.json: ") && message.contains(expected), "{message}");
        }
        // More than a statement says is no contradiction.
        let mut stricter = good.clone();
        stricter["keys"][1]["revoked_at"] = json!("2026-04-01T00:00:00Z");
        read(&stricter).unwrap();
    }

    #[test]
    fn revocations_become_stronger_and_never_weaker() {
        let mut store = store();
        revoke(&mut store, (1, "retired", "2026-05-01"), None).unwrap();
        for weaker in [("retired", "2026-05-01"), ("superseded", "2026-06-01")] {
            let refused = revoke(&mut store, (1, weaker.0, weaker.1), None);
            assert!(matches!(refused, Err(KeyStoreError::Revoked { .. })), "{weaker:?}");
        }
        revoke(&mut store, (1, "compromised", "2026-05-01"), None).unwrap();
        let refused = revoke(&mut store, (1, "retired", "2026-01-01"), None);
        assert!(matches!(refused, Err(KeyStoreError::Revoked { .. })));
        let refused = revoke(&mut store, (2, "retired", "2026-01-01"), Some(1));
        assert!(matches!(refused, Err(KeyStoreError::Signer { .. })), "a revoked key says nothing");
        let refused = revoke(&mut store, (2, "retired", "2026-01-01"), Some(9));
        assert!(matches!(refused, Err(KeyStoreError::Signer { .. })), "nor does a stranger");
        revoke(&mut store, (2, "compromised", "2026-01-01"), Some(2)).unwrap();
        assert!(matches!(rotate(&mut store, 2, 3), Err(KeyStoreError::Revoked { .. })));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut store = store();
        let again = store.trust(TrustedKey::unlimited(key(1).public(), None));
        assert!(matches!(again, Err(KeyStoreError::Known { .. })));
        let mut never = TrustedKey::unlimited(key(4).public(), None);
        (never.not_before, never.not_after) = (Some(at("2026-02-01")), Some(at("2026-01-01")));
        assert!(matches!(store.trust(never), Err(KeyStoreError::NeverValid { .. })));
        assert!(matches!(rotate(&mut store, 1, 1), Err(KeyStoreError::Same { .. })));
        assert!(matches!(rotate(&mut store, 9, 1), Err(KeyStoreError::Name { .. })));
        rotate(&mut store, 1, 3).unwrap();
        assert!(matches!(rotate(&mut store, 1, 4), Err(KeyStoreError::Followed { .. })));
        let id = key(2).id();
        assert_eq!(store.named(&id.as_str()[..8]).unwrap().keyid, id);
        assert!(store.named(&id.as_str()[..7]).is_err());
        assert!(store.named("").is_err());
    }

    #[test]
    fn changes_at_once_are_all_there_and_a_failed_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trusted.json");
        let add = |seed: u8| {
            change(&path, true, |store| {
                store.trust(TrustedKey::unlimited(key(seed).public(), None))
            })
        };
        std::thread::scope(|scope| {
            (1..9).for_each(|seed| drop(scope.spawn(move || add(seed).unwrap())));
        });
        let before = std::fs::read(&path).unwrap();
        assert_eq!(TrustedKeys::load(&path).unwrap().keys().len(), 8);
        assert!(matches!(add(3), Err(KeyStoreError::Known { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let missing = change(&dir.path().join("none.json"), false, |_| Ok(()));
        assert!(matches!(missing, Err(KeyStoreError::Trust(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a file was left");
    }

    #[test]
    fn the_state_of_a_key_follows_its_dates() {
        let mut entry = TrustedKey::unlimited(key(1).public(), None);
        (entry.not_before, entry.not_after) = (Some(at("2026-02-01")), Some(at("2026-04-01")));
        let states = |entry: &TrustedKey| {
            ["2026-01-01", "2026-03-01", "2026-05-01"].map(|day| entry.state(at(day)))
        };
        assert_eq!(states(&entry), ["not_yet_valid", "valid", "expired"]);
        entry.revocation = Some(Revocation::new(at("2026-02-15"), "retired"));
        assert_eq!(states(&entry), ["not_yet_valid", "revoked", "revoked"]);
        entry.revocation = Some(Revocation::new(at("2026-02-15"), "compromised"));
        assert_eq!(states(&entry), ["revoked"; 3]);
    }
}
