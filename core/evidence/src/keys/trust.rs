//! Whom a verifier trusts: `trusted_keys.json`, or single public keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::{Quoted, UtcTime};
use serde_json::{Map, Value};

use super::file::{AnyPublicKey, load_any_public_key};
use super::p256::P256PublicKey;
use super::{KeyError, KeyId, PublicKey, succession};
use crate::dsse::Envelope;
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::timestamp::{Authorities, NoCertificate};

/// What a key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Usage {
    /// One compliance document.
    Manifest,
    /// The run as a whole.
    Run,
    /// A model folder.
    Model,
    /// The head of an audit log.
    Checkpoint,
    /// An approval or rejection.
    Approval,
    /// An exported file.
    Export,
    /// A shared library with plugins.
    Plugin,
}

impl Usage {
    /// All usages with their words in the trust store.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Manifest, "manifest"),
        (Self::Run, "run"),
        (Self::Model, "model"),
        (Self::Checkpoint, "checkpoint"),
        (Self::Approval, "approval"),
        (Self::Export, "export"),
        (Self::Plugin, "plugin"),
    ];

    /// Its word in the trust store.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(usage, _)| *usage == self).map_or("", |(_, word)| word)
    }

    /// The usage of a word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, word)| *word == text).map(|(usage, _)| *usage)
    }
}

/// When a key is no longer believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The moment.
    pub at: UtcTime,
    /// `true` for `superseded` and `retired`: what it signed earlier stays valid. `false` for
    /// `compromised` and anything else: nothing it signed is valid.
    pub keeps_earlier: bool,
    /// The reason as written.
    pub reason: String,
}

impl Revocation {
    /// Of a moment, for a reason.
    #[must_use]
    pub fn new(at: UtcTime, reason: &str) -> Self {
        let keeps_earlier = matches!(reason, "superseded" | "retired");
        Self { at, keeps_earlier, reason: reason.to_owned() }
    }

    /// Whether something is believed under this one that is not under `other`.
    #[must_use]
    pub fn is_weaker_than(&self, other: &Self) -> bool {
        match (self.keeps_earlier, other.keeps_earlier) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => self.at > other.at,
        }
    }
}

/// One trusted key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// Its id, equal to that of the public key.
    pub keyid: KeyId,
    /// The key.
    pub public_key: PublicKey,
    /// A name for people.
    pub label: Option<String>,
    /// What it may sign.
    pub usages: BTreeSet<Usage>,
    /// Not valid before.
    pub not_before: Option<UtcTime>,
    /// Not valid after.
    pub not_after: Option<UtcTime>,
    /// Whether and when it was revoked.
    pub revocation: Option<Revocation>,
    /// The key that follows it.
    pub successor: Option<KeyId>,
}

impl TrustedKey {
    /// A key without limits.
    #[must_use]
    pub fn unlimited(public_key: PublicKey, label: Option<String>) -> Self {
        Self {
            keyid: public_key.id(),
            public_key,
            label,
            usages: Usage::ALL.iter().map(|(usage, _)| *usage).collect(),
            not_before: None,
            not_after: None,
            revocation: None,
            successor: None,
        }
    }
}

/// The keys a verifier believes. Empty: nothing is ever better than `untrusted_key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    keys: Vec<TrustedKey>,
    thresholds: BTreeMap<Usage, usize>,
    /// What was signed about keys; each agrees with them.
    pub(super) statements: Vec<Envelope>,
    /// Believed about model folders alone.
    of_models: Vec<P256PublicKey>,
    /// Believed about the time of signatures.
    authorities: Authorities,
    /// What counts only with a trusted time stamp.
    stamped: BTreeSet<Usage>,
}

/// Why a trust store cannot be used: nothing is checked.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error(transparent)]
    Open(OpenError),
    /// It cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not a trust store.
    #[error("{place}: {detail}")]
    Malformed {
        /// The file, and where in it.
        place: String,
        /// What was found and expected.
        detail: String,
    },
}

impl TrustError {
    /// Whether the system refused to read it (exit 2) rather than it being none (exit 1).
    #[must_use]
    pub fn is_runtime(&self) -> bool {
        match self {
            Self::Open(error) => error.class() == forgelm_artifact::Class::Runtime,
            Self::Io { .. } => true,
            Self::Malformed { .. } => false,
        }
    }
}

impl TrustedKeys {
    /// The keys of one or more public keys, each with all usages (`--key PUB`).
    #[must_use]
    pub fn of_public_keys(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self::of_named_keys(keys.into_iter().map(|key| (key, None)))
    }

    /// As [`TrustedKeys::of_public_keys`], with names. A key that comes twice is one.
    #[must_use]
    pub fn of_named_keys(keys: impl IntoIterator<Item = (PublicKey, Option<String>)>) -> Self {
        let mut store = Self::default();
        for (key, label) in keys {
            store.add(TrustedKey::unlimited(key, label));
        }
        store
    }

    /// The store of public key files.
    ///
    /// # Errors
    /// If one is no Ed25519 public key, and no P-256 one, which counts for model folders.
    pub fn of_key_files(paths: &[PathBuf]) -> Result<Self, KeyError> {
        let mut store = Self::default();
        for path in paths {
            match load_any_public_key(path)? {
                (AnyPublicKey::Ed25519(key), name) => store.add(TrustedKey::unlimited(key, name)),
                (AnyPublicKey::P256(key), _) => store.of_models.push(key),
            }
        }
        Ok(store)
    }

    /// The P-256 key of a fingerprint, which counts for model folders.
    pub(crate) fn of_models(&self, fingerprint: &str) -> Option<&P256PublicKey> {
        self.of_models.iter().find(|key| key.fingerprint() == fingerprint)
    }

    /// The public half of this user's automatic key: what this user signed, this user believes.
    #[must_use]
    pub fn with_local(key: PublicKey) -> Self {
        let keys = vec![TrustedKey::unlimited(key, Some("local".to_owned()))];
        Self { keys, ..Self::default() }
    }

    /// Reads a `trusted_keys.json`.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let (file, _) = open::regular(path).map_err(TrustError::Open)?;
        let mut bytes = Vec::new();
        file.take(DOCUMENT_LIMITS.size_bytes as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| TrustError::Io { path: path.to_owned(), source })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a trust store; errors name `place`. Unknown members, a version other
    /// than 1, and a key id that is not that of its key are refused.
    ///
    /// # Errors
    /// [`TrustError::Malformed`].
    pub fn parse(bytes: &[u8], place: &str) -> Result<Self, TrustError> {
        let document =
            parse(bytes, DOCUMENT_LIMITS).map_err(|e| malformed(place, e.to_string()))?;
        let root =
            Object::of(&document, place, &["version", "keys", "thresholds", "tsa", "statements"])?;
        if root.members.get("version") != Some(&Value::from(1)) {
            return Err(malformed(place, "`version` is not 1"));
        }
        let Some(Value::Array(entries)) = root.members.get("keys") else {
            return Err(malformed(place, "`keys` is not a list"));
        };
        let mut keys: Vec<TrustedKey> = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let key = trusted_key(entry, &format!("{place}: keys[{i}]"))?;
            if keys.iter().any(|other| other.keyid == key.keyid) {
                return Err(malformed(place, format!("key {} is listed twice", key.keyid)));
            }
            keys.push(key);
        }
        let thresholds = match root.members.get("thresholds") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(value) => thresholds(value, &format!("{place}: thresholds"))?,
        };
        let authorities = authorities(root.members.get("tsa"), place)?;
        let statements = match root.members.get("statements") {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(statements)) => statements,
            Some(_) => return Err(malformed(place, "`statements` is not a list")),
        };
        let read = |(i, value)| {
            let place = format!("{place}: statements[{i}]");
            succession::read(value, &keys).map_err(|reason| malformed(&place, reason))
        };
        let statements = statements.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self { keys, thresholds, statements, authorities, ..Self::default() })
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[TrustedKey] {
        &self.keys
    }

    /// Adds a key; one that is there already stays as it is.
    pub fn add(&mut self, key: TrustedKey) {
        if self.find(&key.keyid).is_none() {
            self.keys.push(key);
        }
    }

    /// The key of an id.
    #[must_use]
    pub fn find(&self, keyid: &KeyId) -> Option<&TrustedKey> {
        self.keys.iter().find(|key| key.keyid == *keyid)
    }

    pub(super) fn find_mut(&mut self, keyid: &KeyId) -> Option<&mut TrustedKey> {
        self.keys.iter_mut().find(|key| key.keyid == *keyid)
    }

    /// Whether what a key signs now, for a usage, is believed.
    #[must_use]
    pub fn may_sign(&self, keyid: &KeyId, usage: Usage, now: UtcTime) -> bool {
        self.find(keyid).is_some_and(|key| {
            key.usages.contains(&usage)
                && key.revocation.is_none()
                && key.not_before.is_none_or(|limit| now >= limit)
                && key.not_after.is_none_or(|limit| now <= limit)
        })
    }

    /// How many statements about its keys it has.
    #[must_use]
    pub fn n_statements(&self) -> usize {
        self.statements.len()
    }

    /// The thresholds that are set.
    pub fn thresholds(&self) -> impl Iterator<Item = (Usage, usize)> {
        self.thresholds.iter().map(|(usage, n)| (*usage, *n))
    }

    /// Whose time stamps are believed.
    #[must_use]
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Believes the time stamps of these certificates (PEM), and of whom they certify, too.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub fn add_authorities(&mut self, pem: &[u8]) -> Result<(), NoCertificate> {
        self.authorities.add_pem(pem)
    }

    /// Demands a trusted time stamp over what is signed for these usages.
    pub fn require_stamps(&mut self, usages: &[Usage]) {
        self.stamped.extend(usages);
    }

    /// Whether a signature for this counts only with a trusted time stamp.
    #[must_use]
    pub fn requires_stamp(&self, usage: Usage) -> bool {
        self.stamped.contains(&usage)
    }

    /// How many distinct keys must have signed.
    #[must_use]
    pub fn threshold(&self, usage: Usage) -> usize {
        self.thresholds.get(&usage).copied().unwrap_or(1)
    }

    /// Demands `n` distinct keys for one usage.
    pub fn set_threshold_of(&mut self, usage: Usage, n: usize) {
        self.thresholds.insert(usage, n.max(1));
    }

    /// Demands `n` distinct keys for every usage (`--threshold`).
    pub fn set_threshold(&mut self, n: usize) {
        self.thresholds = Usage::ALL.iter().map(|(usage, _)| (*usage, n.max(1))).collect();
    }
}

fn malformed(place: &str, detail: impl Into<String>) -> TrustError {
    TrustError::Malformed { place: place.to_owned(), detail: detail.into() }
}

struct Object<'a> {
    members: &'a Map<String, Value>,
    place: &'a str,
}

impl<'a> Object<'a> {
    fn of(value: &'a Value, place: &'a str, known: &[&str]) -> Result<Self, TrustError> {
        let Value::Object(members) = value else {
            return Err(malformed(place, "not an object"));
        };
        if let Some(unknown) = members.keys().find(|key| !known.contains(&key.as_str())) {
            let unknown = Quoted(unknown);
            return Err(malformed(place, format!("{unknown} is not a known member")));
        }
        Ok(Self { members, place })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, TrustError> {
        match self.members.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed(self.place, format!("`{key}` is not text"))),
        }
    }

    fn required(&self, key: &str) -> Result<&'a str, TrustError> {
        self.text(key)?.ok_or_else(|| malformed(self.place, format!("`{key}` is missing")))
    }

    fn time(&self, key: &str) -> Result<Option<UtcTime>, TrustError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|e| malformed(self.place, format!("`{key}`: {e}")))
    }
}

fn trusted_key(value: &Value, place: &str) -> Result<TrustedKey, TrustError> {
    const KNOWN: [&str; 9] = [
        "keyid",
        "public_key",
        "label",
        "usages",
        "not_before",
        "not_after",
        "revoked_at",
        "revocation_reason",
        "successor",
    ];
    let entry = Object::of(value, place, &KNOWN)?;
    let public_key = STANDARD
        .decode(entry.required("public_key")?)
        .ok()
        .and_then(|bytes| PublicKey::from_bytes(&bytes))
        .ok_or_else(|| malformed(place, "`public_key` is not the base64 of an Ed25519 key"))?;
    let keyid = public_key.id();
    if entry.required("keyid")? != keyid.as_str() {
        return Err(malformed(place, format!("`keyid` is not that of the key, which is {keyid}")));
    }
    let key_id = |text: &str| {
        KeyId::parse(text).ok_or_else(|| malformed(place, "`successor` is not a key id"))
    };
    Ok(TrustedKey {
        keyid,
        public_key,
        label: entry.text("label")?.map(str::to_owned),
        usages: usages(entry.members.get("usages"), place)?,
        not_before: entry.time("not_before")?,
        not_after: entry.time("not_after")?,
        revocation: revocation(&entry)?,
        successor: entry.text("successor")?.map(key_id).transpose()?,
    })
}

fn revocation(entry: &Object<'_>) -> Result<Option<Revocation>, TrustError> {
    let reason = entry.text("revocation_reason")?;
    let Some(at) = entry.time("revoked_at")? else {
        return match reason {
            None => Ok(None),
            Some(_) => Err(malformed(entry.place, "`revocation_reason` without `revoked_at`")),
        };
    };
    Ok(Some(Revocation::new(at, reason.unwrap_or("not given"))))
}

fn usages(value: Option<&Value>, place: &str) -> Result<BTreeSet<Usage>, TrustError> {
    let Some(Value::Array(words)) = value else {
        return Err(malformed(place, "`usages` is not a list"));
    };
    let usage = |word: &Value| {
        word.as_str()
            .and_then(Usage::parse)
            .ok_or_else(|| malformed(place, format!("`usages`: {word} is not a known usage")))
    };
    words.iter().map(usage).collect()
}

/// `tsa`: certificates, each as PEM.
fn authorities(value: Option<&Value>, place: &str) -> Result<Authorities, TrustError> {
    let mut all = Authorities::default();
    let list = match value {
        None | Some(Value::Null) => return Ok(all),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(malformed(place, "`tsa` is not a list")),
    };
    for (i, entry) in list.iter().enumerate() {
        let place = format!("{place}: tsa[{i}]");
        let pem = entry.as_str().ok_or_else(|| malformed(&place, "not text"))?;
        all.add_pem(pem.as_bytes()).map_err(|error| malformed(&place, error.to_string()))?;
    }
    Ok(all)
}

fn thresholds(value: &Value, place: &str) -> Result<BTreeMap<Usage, usize>, TrustError> {
    let Value::Object(members) = value else { return Err(malformed(place, "not an object")) };
    let mut all = BTreeMap::new();
    for (word, n) in members {
        let usage = Usage::parse(word)
            .ok_or_else(|| malformed(place, format!("{} is not a known usage", Quoted(word))))?;
        let n = n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= 1);
        let n = n.ok_or_else(|| malformed(place, format!("`{word}` is not a count from 1")))?;
        all.insert(usage, n);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::{TrustedKeys, Usage};
    use crate::keys::tests::rfc_8032_key;

    fn store() -> Value {
        let key = rfc_8032_key().public();
        json!({
            "version": 1,
            "keys": [{
                "keyid": key.id().as_str(),
                "public_key": STANDARD.encode(key.to_bytes()),
                "label": "ci-prod",
                "usages": ["manifest", "run"],
                "not_before": "2026-01-01T00:00:00Z",
                "not_after": "2027-01-01T00:00:00Z",
                "revoked_at": null,
                "revocation_reason": null,
                "successor": null,
            }],
            "thresholds": {"run": 2},
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut store = store();
        change(&mut store);
        TrustedKeys::parse(store.to_string().as_bytes(), "t.json").unwrap_err().to_string()
    }

    #[test]
    fn the_store_of_the_specification_is_read() {
        let keys = TrustedKeys::parse(store().to_string().as_bytes(), "t.json").unwrap();
        let key = &keys.keys()[0];
        assert_eq!(key.label.as_deref(), Some("ci-prod"));
        assert_eq!(key.usages.iter().copied().collect::<Vec<_>>(), [Usage::Manifest, Usage::Run]);
        assert_eq!((keys.threshold(Usage::Run), keys.threshold(Usage::Manifest)), (2, 1));
        assert!(key.not_before < key.not_after);
        assert!(keys.find(&rfc_8032_key().id()).is_some());
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        let id = "0".repeat(64);
        let cases = [
            (refused(|s| s["version"] = json!(2)), "`version` is not 1"),
            (refused(|s| s["keys"] = json!({})), "`keys` is not a list"),
            (refused(|s| s["keys"][0]["keyid"] = json!(id)), "keys[0]: `keyid` is not that of"),
            (refused(|s| s["keys"][0]["public_key"] = json!("AAAA")), "keys[0]: `public_key`"),
            (refused(|s| s["keys"][0]["usages"] = json!(["all"])), "not a known usage"),
            (refused(|s| s["keys"][0]["expires"] = json!("x")), "\"expires\" is not a known"),
            (refused(|s| s["keys"][0]["not_after"] = json!("soon")), "`not_after`"),
            (refused(|s| s["keys"][0]["revocation_reason"] = json!("x")), "without `revoked_at`"),
            (refused(|s| s["thresholds"]["run"] = json!(0)), "not a count from 1"),
            (
                refused(|s| {
                    let again = s["keys"][0].clone();
                    s["keys"].as_array_mut().unwrap().push(again);
                }),
                "listed twice",
            ),
        ];
        for (message, expected) in cases {
            assert!(message.starts_with("t.json: ") && message.contains(expected), "{message}");
        }
        let twice = br#"{"version": 1, "keys": [], "keys": []}"#;
        let message = TrustedKeys::parse(twice, "t.json").unwrap_err().to_string();
        assert!(message.contains("appears twice"), "{message}");
    }
}
