//! Verifying an envelope, and what can come out of it.
//!
//! The order is fixed: size and shape, signature over the decoded bytes, payload type, statement
//! type, predicate type, exact form, trust in the key. Subjects are compared by the caller, who
//! knows the files.

use serde_json::{Value, json};

use forgelm_artifact::UtcTime;

use super::statement::{PredicateType, Statement};
use super::{Envelope, PAYLOAD_TYPE, Signature, pae};
use crate::class::Class;
use crate::keys::trust::{TrustedKey, TrustedKeys};
use crate::keys::{KeyId, PublicKey};
use crate::timestamp::Proven;

/// How a signature was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureState {
    /// By a trusted key, and everything it speaks of is as it says.
    Valid,
    /// There is none.
    Absent,
    /// By a key that is not trusted for this, or by one that is not known at all.
    UntrustedKey,
    /// Payload, signature or envelope were changed.
    Invalid,
    /// Genuine, but it speaks of other bytes, another file, or is of another type.
    SubjectMismatch,
    /// By a key that was revoked.
    Revoked,
    /// Signed outside the key's validity.
    Expired,
    /// Not an envelope, or not of in-toto statements.
    Malformed,
    /// Could not be looked at.
    NotChecked,
}

impl SignatureState {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Absent => "absent",
            Self::UntrustedKey => "untrusted_key",
            Self::Invalid => "invalid",
            Self::SubjectMismatch => "subject_mismatch",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::NotChecked => "not_checked",
        }
    }

    /// The exit class. (`NotChecked` because of a read error is [`Class::Unreadable`]: see
    /// [`SignatureReport::class`].)
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Valid => Class::Accepted,
            Self::Absent | Self::UntrustedKey | Self::Malformed | Self::NotChecked => {
                Class::NotCompared
            }
            Self::Invalid | Self::SubjectMismatch | Self::Revoked | Self::Expired => {
                Class::Different
            }
        }
    }
}

/// What is known about one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureReport {
    /// The state.
    pub state: SignatureState,
    /// The exit class.
    pub class: Class,
    /// The file that is named when this fails: the signature's, or the one it speaks of.
    pub place: String,
    /// Id of the key that made the signature; only a hint unless `state` says more.
    pub keyid: Option<String>,
    /// The key's name in the trust store.
    pub label: Option<String>,
    /// `provisioned` or `auto_generated`, as the signer says.
    pub key_origin: Option<String>,
    /// When it was signed, as the signer says.
    pub signed_at: Option<String>,
    /// The predicate type's URI.
    pub predicate_type: Option<String>,
    /// Whether a trusted key made it.
    pub trusted: bool,
    /// Whether a trusted authority stamped the signature of that key.
    pub timestamped: bool,
    /// Why, when it is not `valid`.
    pub reason: Option<String>,
    /// Things to know that are no failure.
    pub warnings: Vec<String>,
}

impl SignatureReport {
    /// The line for people of a verifier that says more than this.
    #[must_use]
    pub(crate) fn to_line(&self) -> String {
        match (&self.keyid, self.state) {
            (Some(keyid), SignatureState::Valid) => format!("  signature: valid, by {keyid}"),
            (_, state) => format!("  signature: {}", state.as_str()),
        }
    }

    /// A report of nothing but a state.
    #[must_use]
    pub fn new(state: SignatureState, place: &str, reason: impl Into<String>) -> Self {
        Self {
            state,
            class: state.class(),
            place: place.to_owned(),
            keyid: None,
            label: None,
            key_origin: None,
            signed_at: None,
            predicate_type: None,
            trusted: false,
            timestamped: false,
            reason: Some(reason.into()),
            warnings: Vec::new(),
        }
    }

    /// The same with another state, because of `reason`, at `place`.
    #[must_use]
    pub fn failed(mut self, state: SignatureState, place: &str, reason: impl Into<String>) -> Self {
        self.state = state;
        self.class = state.class();
        place.clone_into(&mut self.place);
        self.reason = Some(reason.into());
        self
    }

    /// An input that is there but could not be read.
    #[must_use]
    pub fn unreadable(place: &str, reason: impl Into<String>) -> Self {
        let report = Self::new(SignatureState::NotChecked, place, reason);
        Self { class: Class::Unreadable, ..report }
    }

    /// The `signature` member of a verifier's JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "state": self.state.as_str(),
            "keyid": self.keyid,
            "label": self.label,
            "key_origin": self.key_origin,
            "signed_at": self.signed_at,
            "predicate_type": self.predicate_type,
            "trusted": self.trusted,
            "timestamped": self.timestamped,
            "reason": self.reason,
        })
    }
}

/// An envelope that was looked at.
#[derive(Clone, Debug)]
pub struct CheckedEnvelope {
    /// What came out.
    pub report: SignatureReport,
    /// The statement, when a known key (trusted or not) really signed it, it is of the expected
    /// type, and the envelope is unchanged.
    pub statement: Option<Statement>,
}

/// Checks the envelope `bytes` of the file `place`.
///
/// `neighbour` is a public key that lies beside the files: it can show that a signature is
/// mathematically right, but is never trusted.
#[must_use]
pub fn check_envelope(
    bytes: &[u8],
    place: &str,
    keys: &TrustedKeys,
    neighbour: Option<&PublicKey>,
    expected: PredicateType,
) -> CheckedEnvelope {
    let fail = |state, reason: String| CheckedEnvelope {
        report: SignatureReport::new(state, place, reason),
        statement: None,
    };
    let envelope = match Envelope::parse(bytes) {
        Ok(envelope) => envelope,
        Err(e) if e.is_damaged => {
            return fail(SignatureState::Invalid, format!("the envelope is damaged: {e}"));
        }
        Err(e) => return fail(SignatureState::Malformed, format!("not an envelope: {e}")),
    };
    let signed = Signers::of(&envelope, keys, neighbour);
    if let Some((state, reason)) = signed.problem(&envelope, keys, neighbour) {
        let mut checked = fail(state, reason);
        checked.report.keyid = envelope.signatures.iter().find_map(|s| s.keyid.clone());
        return checked;
    }
    // From here on the payload is what some known key signed.
    let mut report = SignatureReport::new(SignatureState::Valid, place, "");
    report.reason = None;
    report.keyid = signed.all().next().map(ToString::to_string);
    let stop = |report: SignatureReport, state, reason: String| CheckedEnvelope {
        report: report.failed(state, place, reason),
        statement: None,
    };
    if envelope.payload_type != PAYLOAD_TYPE {
        let reason = format!("the payload type is not `{PAYLOAD_TYPE}`");
        return stop(report, SignatureState::Malformed, reason);
    }
    let statement = match Statement::parse(&envelope.payload) {
        Ok(statement) => statement,
        Err(reason) => {
            return stop(report, SignatureState::Malformed, format!("not a statement: {reason}"));
        }
    };
    describe(&mut report, &statement);
    if statement.predicate_type != expected.uri() {
        let found = forgelm_artifact::Quoted(&statement.predicate_type);
        let reason = format!("a statement of type {found}; expected `{}`", expected.uri());
        return stop(report, SignatureState::SubjectMismatch, reason);
    }
    let is_unknown = |s: &&Signature| s.keyid.is_some() && known_key(s, keys, neighbour).is_none();
    let n_unknown = envelope.signatures.iter().filter(is_unknown).count();
    if n_unknown > 0 {
        let n = envelope.signatures.len();
        let text = "are by keys that are not known here, and were not checked";
        report.warnings.push(format!("{n_unknown} of {n} signatures {text}"));
    }
    if let Some(reason) = changed_form(&envelope, bytes, &statement, &signed) {
        return stop(report, SignatureState::Invalid, reason);
    }
    judge_trust(&mut report, &signed, &Proven::of(&envelope, keys.authorities()), keys, expected);
    CheckedEnvelope { report, statement: Some(statement) }
}

/// The known keys whose signatures verify.
struct Signers<'a> {
    /// Each with the index of its signature.
    trusted: Vec<(&'a TrustedKey, usize)>,
    neighbour: Option<KeyId>,
    wrong_hint: bool,
}

impl<'a> Signers<'a> {
    fn of(envelope: &Envelope, keys: &'a TrustedKeys, neighbour: Option<&PublicKey>) -> Self {
        let message = pae(&envelope.payload_type, &envelope.payload);
        let mut wrong_hint = false;
        let mut verifies = |key: &PublicKey, id: &KeyId| {
            let mine = envelope.signatures.iter().position(|s| key.verifies(&message, &s.sig));
            if let Some(hint) = mine.and_then(|i| envelope.signatures[i].keyid.as_ref()) {
                wrong_hint |= hint != id.as_str();
            }
            mine
        };
        let with_signature =
            |key: &'a TrustedKey| Some((key, verifies(&key.public_key, &key.keyid)?));
        let trusted: Vec<_> = keys.keys().iter().filter_map(with_signature).collect();
        let found = neighbour.map(|key| (key, key.id()));
        let neighbour = if trusted.is_empty() {
            found.filter(|(key, id)| verifies(key, id).is_some()).map(|(_, id)| id)
        } else {
            None
        };
        Self { trusted, neighbour, wrong_hint }
    }

    fn all(&self) -> impl Iterator<Item = &KeyId> {
        self.trusted.iter().map(|(key, _)| &key.keyid).chain(&self.neighbour)
    }

    /// Why the payload must not even be parsed.
    fn problem(
        &self,
        envelope: &Envelope,
        keys: &TrustedKeys,
        neighbour: Option<&PublicKey>,
    ) -> Option<(SignatureState, String)> {
        if self.wrong_hint {
            let reason = "the envelope's `keyid` does not name the key that signed it".to_owned();
            return Some((SignatureState::Invalid, reason));
        }
        // Of several signatures each one that can be checked must be good, not just enough of them.
        let message = pae(&envelope.payload_type, &envelope.payload);
        let is_bad = |signature: &Signature| {
            let known = known_key(signature, keys, neighbour);
            known.is_some_and(|key| !key.verifies(&message, &signature.sig))
        };
        if envelope.signatures.iter().any(is_bad) {
            let reason = "the signature does not match the payload".to_owned();
            return Some((SignatureState::Invalid, reason));
        }
        if self.all().next().is_some() {
            return None;
        }
        let hints: Vec<&str> =
            envelope.signatures.iter().filter_map(|s| s.keyid.as_deref()).collect();
        let who = hints.first().map_or_else(
            || "an unnamed key".to_owned(),
            |hint| format!("key {}", forgelm_artifact::Quoted(hint)),
        );
        let reason = format!("signed by {who}, which is not known here");
        Some((SignatureState::UntrustedKey, reason))
    }
}

/// The key that a signature names, if it is known here.
fn known_key<'a>(
    signature: &Signature,
    keys: &'a TrustedKeys,
    neighbour: Option<&'a PublicKey>,
) -> Option<&'a PublicKey> {
    let hint = signature.keyid.as_deref()?;
    let trusted = keys.keys().iter().find(|key| key.keyid.as_str() == hint);
    let is_neighbour = |key: &&PublicKey| key.id().as_str() == hint;
    trusted.map(|key| &key.public_key).or_else(|| neighbour.filter(is_neighbour))
}

fn describe(report: &mut SignatureReport, statement: &Statement) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    report.predicate_type = Some(statement.predicate_type.clone());
    report.signed_at = text(statement.predicate.get("signed_at"));
    report.key_origin = text(statement.predicate.pointer("/signer/key_origin"));
}

/// An envelope that ForgeLM wrote has one exact form and names its signer inside the signed bytes.
fn changed_form(
    envelope: &Envelope,
    bytes: &[u8],
    statement: &Statement,
    signed: &Signers<'_>,
) -> Option<String> {
    let builder = statement.predicate.pointer("/builder/name").and_then(Value::as_str);
    if builder != Some(crate::BUILDER_NAME) {
        return None;
    }
    let keyid = statement.predicate.pointer("/signer/keyid").and_then(Value::as_str);
    // Where others signed too, the one that is named may be unknown here, but must be there.
    let is_there = envelope.signatures.iter().any(|s| s.keyid.as_deref() == keyid);
    if !is_there && !signed.all().any(|id| Some(id.as_str()) == keyid) {
        return Some("signed by another key than the statement names".to_owned());
    }
    // One whose hint was taken away has an exact form of its own.
    let has_hints = envelope.signatures.iter().all(|s| s.keyid.is_some());
    (!has_hints || envelope.to_bytes() != bytes)
        .then(|| "the envelope is not in the exact form that ForgeLM writes".to_owned())
}

fn judge_trust(
    report: &mut SignatureReport,
    signed: &Signers<'_>,
    proven: &Proven,
    keys: &TrustedKeys,
    expected: PredicateType,
) {
    let signed_at = report.signed_at.as_deref().and_then(|text| text.parse::<UtcTime>().ok());
    let mut n_good = 0;
    let mut worst = None;
    for (key, signature) in &signed.trusted {
        let times = Times { signed_at, stamped_at: proven.moment(*signature) };
        match key_problem(key, times, expected) {
            None => {
                if n_good == 0 {
                    report.keyid = Some(key.keyid.to_string());
                    report.label.clone_from(&key.label);
                }
                n_good += 1;
                report.timestamped |= times.stamped_at.is_some();
                report.warnings.extend(times.note(key));
            }
            Some(problem) => worst = worst.or(Some(problem)),
        }
    }
    let needed = keys.threshold(expected.usage());
    report.trusted = n_good > 0;
    report.warnings.extend(proven.notes.iter().cloned());
    if n_good >= needed {
        if keys.requires_stamp(expected.usage()) && !report.timestamped {
            let reason = "no trusted time stamp proves when it was signed, and one is required";
            let place = report.place.clone();
            *report = report.clone().failed(SignatureState::NotChecked, &place, reason);
        }
        return;
    }
    let (state, reason) = worst.unwrap_or_else(|| {
        let reason = match (n_good, signed.neighbour.is_some()) {
            (0, true) if keys.keys().is_empty() => {
                "the signature matches the public key beside it, but no trusted key was given"
                    .to_owned()
            }
            (0, _) => "the signature matches a key that is not in the trust store".to_owned(),
            (n, _) => format!("signed by {n} of the {needed} trusted keys that are required"),
        };
        (SignatureState::UntrustedKey, reason)
    });
    let place = report.place.clone();
    *report = report.clone().failed(state, &place, reason);
}

/// What is known of when a signature was made.
#[derive(Clone, Copy)]
struct Times {
    /// As the signer says.
    signed_at: Option<UtcTime>,
    /// The moment by which it was there, as a trusted authority says.
    stamped_at: Option<UtcTime>,
}

impl Times {
    /// What to know of a key with dates whose signature is good.
    fn note(self, key: &TrustedKey) -> Option<String> {
        let has_dates =
            key.not_before.is_some() || key.not_after.is_some() || key.revocation.is_some();
        match self.stamped_at {
            Some(at) => Some(format!("a trusted time stamp proves that it was signed by {at}")),
            None => has_dates.then(|| "the time of signing is the signer's own word".to_owned()),
        }
    }
}

fn key_problem(
    key: &TrustedKey,
    Times { signed_at, stamped_at }: Times,
    expected: PredicateType,
) -> Option<(SignatureState, String)> {
    if let Some(revocation) = &key.revocation {
        let earlier = signed_at.is_some_and(|at| at < revocation.at);
        let is_proven = stamped_at.is_some_and(|at| at < revocation.at);
        let is_believed = is_proven || (revocation.keeps_earlier && earlier);
        if !is_believed {
            let reason = forgelm_artifact::Quoted(&revocation.reason);
            return Some((
                SignatureState::Revoked,
                format!("key {} was revoked at {} ({reason})", key.keyid, revocation.at),
            ));
        }
    }
    let is_early = key.not_before.is_some_and(|limit| signed_at.is_none_or(|at| at < limit));
    let is_late = key.not_after.is_some_and(|limit| {
        let is_proven = stamped_at.is_some_and(|at| at <= limit);
        !is_proven && signed_at.is_none_or(|at| at > limit)
    });
    if is_early || is_late {
        let reason = format!("signed outside the validity of key {}", key.keyid);
        return Some((SignatureState::Expired, reason));
    }
    if !key.usages.contains(&expected.usage()) {
        let reason = format!("key {} is not trusted for `{}`", key.keyid, expected.suffix());
        return Some((SignatureState::UntrustedKey, reason));
    }
    None
}
