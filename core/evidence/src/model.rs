//! S3: the signature of a model folder, as OpenSSF Model Signing v1.0 has it: a Sigstore bundle
//! `model.sig` in the folder, around a DSSE envelope of a statement about every file.
//!
//! The key is Ed25519, which the registry of that specification does not list, so that other verifiers
//! may refuse it; or P-256, which they read (checked with `model-signing` of PyPI, see
//! `tests/data/golden/model_signing`). The predicate also has `signed_at`, `signer` and `builder`, so that
//! keys with dates can be judged. Only the method `files` with SHA-256 is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forgelm_artifact::write;
use serde_json::{Value, json};

use crate::BUILDER_NAME;
use crate::digest::{root_digest, unhex32};
use crate::dsse::statement::{PredicateType, Statement, Subject, is_subject_name};
use crate::dsse::verify::{SignatureReport, SignatureState, check_envelope};
use crate::dsse::{Envelope, PAYLOAD_TYPE, pae};
use crate::files::{self, EntryKind, FileProblem};
use crate::keys::p256::P256Key;
use crate::keys::trust::{TrustedKeys, Usage};
use crate::keys::{KeyError, KeyOrigin, PublicKey, RunSigner};
use crate::sign::{FileClaims, SignFileError};
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::{pretty_json, shown};
use crate::timestamp::{Proven, attach};

/// The signature's file in the model folder.
pub const MODEL_SIGNATURE: &str = "model.sig";
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Not part of a model, at the top of its folder.
const IGNORED: [&str; 4] = [".git", ".gitignore", ".gitattributes", ".github"];
/// How many differing files are named.
const NAMED_MAX: usize = 5;

/// A model folder that was signed.
#[derive(Debug)]
pub struct SignedModel {
    /// The bundle.
    pub signature: PathBuf,
    /// SHA-256 over the digests of all files, in the order of their names.
    pub root_sha256: String,
    /// Number of files.
    pub n_files: usize,
}

fn is_ignored(name: &str, more: &[&str]) -> bool {
    let is_in = |folder: &&str| {
        name.strip_prefix(*folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    name == MODEL_SIGNATURE || IGNORED.iter().any(is_in) || more.iter().any(is_in)
}

fn bundle(envelope: Value, hint: &str, stamps: &[Vec<u8>]) -> Value {
    let mut bundle = json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    });
    attach::put_into_bundle(&mut bundle, stamps);
    bundle
}

/// What signs a model folder.
#[derive(Clone, Copy)]
pub enum ModelSigner<'a> {
    /// The key that signs everything.
    Run(&'a RunSigner),
    /// A P-256 key, which other tools read.
    P256(&'a P256Key),
}

impl ModelSigner<'_> {
    /// As the predicate names it.
    fn to_json(self) -> Value {
        match self {
            Self::Run(signer) => signer.to_json(),
            Self::P256(key) => json!({
                "keyid": key.public().fingerprint(),
                "key_origin": KeyOrigin::Provisioned.as_str(),
                "label": null,
            }),
        }
    }

    /// The bundle around a signed statement.
    fn bundle(self, payload: Vec<u8>) -> Result<Value, KeyError> {
        match self {
            Self::Run(signer) => {
                let envelope = Envelope::sign(payload, &signer.key)?;
                Ok(bundle(envelope.to_json(), signer.key.id().as_str(), &[]))
            }
            Self::P256(key) => {
                let signature = key.sign(&pae(PAYLOAD_TYPE, &payload));
                Ok(bundle(p256_envelope(&payload, &signature), key.public().fingerprint(), &[]))
            }
        }
    }
}

/// An envelope whose signature has another length than those of [`Envelope`].
fn p256_envelope(payload: &[u8], signature: &[u8]) -> Value {
    json!({
        "payload": STANDARD.encode(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "", "sig": STANDARD.encode(signature)}],
    })
}

/// Signs every file of the folder `dir`, and writes `model.sig` into it. One that is there stays.
///
/// # Errors
/// If it is there, if the folder is empty or has anything but files, or cannot be read or written.
pub fn sign_model(
    dir: &Path,
    claims: &FileClaims<'_>,
    signer: ModelSigner<'_>,
) -> Result<SignedModel, SignFileError> {
    let file = |path: PathBuf, reason: String, is_unreadable| {
        Err(SignFileError::File { path, reason, is_unreadable })
    };
    let signature = dir.join(MODEL_SIGNATURE);
    if signature.symlink_metadata().is_ok() {
        return Err(SignFileError::Exists { signature });
    }
    let whole = dir.canonicalize().ok();
    let name = whole.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let name = name.filter(|name| is_subject_name(name));
    let name = name.ok_or_else(|| SignFileError::Name { path: dir.to_owned() })?.to_owned();
    let found = match files::walk(dir, "") {
        Ok(found) => found,
        Err(e) => return file(dir.to_owned(), format!("cannot be listed: {e}"), true),
    };
    let names: Vec<&str> =
        found.keys().map(String::as_str).filter(|name| !is_ignored(name, &[])).collect();
    if names.is_empty() {
        return file(dir.to_owned(), "the model folder is empty".to_owned(), false);
    }
    let mut resources = Vec::with_capacity(names.len());
    for (name, digest) in names.iter().zip(files::digests(dir, &names)) {
        if !is_subject_name(name) || found[*name] == EntryKind::Other {
            return Err(SignFileError::Name { path: dir.join(name) });
        }
        match digest {
            Ok(digest) => resources.push((*name, digest.sha256)),
            Err(problem) => {
                let is_unreadable = matches!(problem, FileProblem::Unreadable(_));
                return file(dir.join(name), problem.reason(), is_unreadable);
            }
        }
    }
    let root_sha256 = root_digest(resources.iter().map(|(_, digest)| digest.as_str()));
    let entry = |(name, digest): &(&str, String)| json!({"name": name, "digest": digest, "algorithm": "sha256"});
    let predicate = json!({
        "resources": resources.iter().map(entry).collect::<Vec<_>>(),
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": false,
            "ignore_paths": [MODEL_SIGNATURE],
        },
        "signed_at": claims.signed_at,
        "signer": signer.to_json(),
        "builder": claims.builder.to_json(),
    });
    let subject = Subject { name, sha256: root_sha256.clone() };
    let statement = Statement::new(vec![subject], PredicateType::ModelFolder, predicate);
    write::atomic(&signature, &pretty_json(&signer.bundle(statement.to_bytes())?))?;
    Ok(SignedModel { signature, root_sha256, n_files: resources.len() })
}

/// Verifies that `signature` (default: `model.sig` in it) is a signature over every file of the folder
/// `dir`, and that no other file is there.
#[must_use]
pub fn verify_model(
    dir: &Path,
    signature: Option<&Path>,
    keys: &TrustedKeys,
    neighbour: Option<&PublicKey>,
) -> SignatureReport {
    let path = signature.map_or_else(|| dir.join(MODEL_SIGNATURE), Path::to_owned);
    let place = path.display().to_string();
    let fail = |state, reason: &str| SignatureReport::new(state, &place, reason);
    let bytes = match files::read_bounded(&path, DOCUMENT_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return fail(SignatureState::Malformed, "larger than 16 MiB"),
        Err(FileProblem::Missing) => return fail(SignatureState::Absent, "there is no signature"),
        Err(FileProblem::Unreadable(detail)) => {
            return SignatureReport::unreadable(&place, format!("cannot be read: {detail}"));
        }
        Err(problem) => return fail(SignatureState::Malformed, &problem.reason()),
    };
    // What has the words of a bundle was one once: it is damaged, and not another kind of file.
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    let broken = if has(b"dsseEnvelope") || (has(b"mediaType") && has(b"verificationMaterial")) {
        SignatureState::Invalid
    } else {
        SignatureState::Malformed
    };
    let document = match parse(&bytes, DOCUMENT_LIMITS) {
        Ok(document) => document,
        Err(e) => return fail(broken, &format!("not a bundle: {e}")),
    };
    let Some(embedded) = document.get("dsseEnvelope") else {
        return fail(broken, "not a bundle: `dsseEnvelope` is missing");
    };
    let hint = document.pointer("/verificationMaterial/publicKey/hint").and_then(Value::as_str);
    let stamps = attach::of_bundle(&document);
    if let Some(signed) = p256_signature(embedded) {
        let hint = hint.unwrap_or_default();
        let checked = check_p256(&signed, hint, &place, keys, (&bytes, &stamps));
        return match checked {
            Ok((statement, report)) => match resources(&statement) {
                Ok((signed, ignored)) => compare(dir, report, &signed, &ignored),
                Err(reason) => report.failed(SignatureState::Malformed, &place, reason),
            },
            Err(report) => *report,
        };
    }
    let envelope = match Envelope::parse(embedded.to_string().as_bytes()) {
        Ok(envelope) => envelope,
        Err(e) => return fail(broken, &format!("not a bundle: {e}")),
    };
    // Judged with the envelope, but they stand elsewhere in a bundle.
    let stamped = Envelope { timestamps: stamps.clone(), ..envelope.clone() };
    let checked =
        check_envelope(&stamped.to_bytes(), &place, keys, neighbour, PredicateType::ModelFolder);
    let report = checked.report;
    let Some(statement) = checked.statement else { return report };
    let ours = statement.predicate.pointer("/builder/name").and_then(Value::as_str);
    let hint = statement.predicate.pointer("/signer/keyid").and_then(Value::as_str);
    if ours == Some(BUILDER_NAME)
        && pretty_json(&bundle(envelope.to_json(), hint.unwrap_or_default(), &stamps)) != bytes
    {
        let reason = "the bundle is not in the exact form that ForgeLM writes";
        return report.failed(SignatureState::Invalid, &place, reason);
    }
    match resources(&statement) {
        Ok((signed, ignored)) => compare(dir, report, &signed, &ignored),
        Err(reason) => report.failed(SignatureState::Malformed, &place, reason),
    }
}

/// The payload and the signature of an envelope with one signature that is not of Ed25519's length.
fn p256_signature(envelope: &Value) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = |value: &Value, key: &str| STANDARD.decode(value.get(key)?.as_str()?).ok();
    let [signature] = envelope.get("signatures")?.as_array()?.as_slice() else { return None };
    let (payload, signature) = (text(envelope, "payload")?, text(signature, "sig")?);
    let is_ours = envelope.get("payloadType")?.as_str()? == PAYLOAD_TYPE;
    // In DER: a sequence of two numbers of at most 33 bytes.
    let is_der = signature.first() == Some(&0x30) && signature.len() <= 72;
    (is_ours && is_der && signature.len() != 64).then_some((payload, signature))
}

/// The statement of a bundle that a P-256 key signed, with the report on its signature; or the report on
/// why there is none.
fn check_p256(
    (payload, signature): &(Vec<u8>, Vec<u8>),
    hint: &str,
    place: &str,
    keys: &TrustedKeys,
    (bytes, stamps): (&[u8], &[Vec<u8>]),
) -> Result<(Statement, SignatureReport), Box<SignatureReport>> {
    let fail = |state, reason: String| {
        let mut report = SignatureReport::new(state, place, reason);
        report.keyid = Some(hint.to_owned());
        Box::new(report)
    };
    let Some(key) = keys.of_models(hint) else {
        let reason = format!("signed by the P-256 key {hint}, which is not trusted");
        return Err(fail(SignatureState::UntrustedKey, reason));
    };
    if !key.verifies(&pae(PAYLOAD_TYPE, payload), signature) {
        let reason = "the signature does not hold".to_owned();
        return Err(fail(SignatureState::Invalid, reason));
    }
    let statement =
        Statement::parse(payload).map_err(|reason| fail(SignatureState::Malformed, reason))?;
    if statement.predicate_type != PredicateType::ModelFolder.uri() {
        let reason = format!("a statement of type `{}`", statement.predicate_type);
        return Err(fail(SignatureState::SubjectMismatch, reason));
    }
    let says = |pointer: &str| {
        statement.predicate.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
    };
    let ours = says("/builder/name").as_deref() == Some(BUILDER_NAME);
    if ours && pretty_json(&bundle(p256_envelope(payload, signature), hint, stamps)) != bytes {
        let reason = "the bundle is not in the exact form that ForgeLM writes".to_owned();
        return Err(fail(SignatureState::Invalid, reason));
    }
    let mut report = SignatureReport::new(SignatureState::Valid, place, "");
    report.reason = None;
    report.trusted = true;
    report.keyid = Some(hint.to_owned());
    report.key_origin = says("/signer/key_origin");
    report.signed_at = says("/signed_at");
    report.predicate_type = Some(statement.predicate_type.clone());
    let proven = Proven::of_signatures(&[signature], stamps, keys.authorities());
    report.timestamped = proven.moment(0).is_some();
    let stamped = proven
        .moment(0)
        .map(|at| format!("a trusted time stamp proves that it was signed by {at}"));
    report.warnings.extend(stamped.into_iter().chain(proven.notes));
    if keys.requires_stamp(Usage::Model) && !report.timestamped {
        let reason = "no trusted time stamp proves when it was signed, and one is required";
        return Err(Box::new(report.failed(SignatureState::NotChecked, place, reason)));
    }
    Ok((statement, report))
}

/// The files that a statement is about, and what it leaves out.
fn resources(statement: &Statement) -> Result<(BTreeMap<&str, &str>, Vec<&str>), String> {
    let predicate = &statement.predicate;
    for (pointer, expected) in [("method", "files"), ("hash_type", "sha256")] {
        let found = predicate.pointer(&format!("/serialization/{pointer}"));
        if found.and_then(Value::as_str) != Some(expected) {
            return Err(format!(
                "`serialization.{pointer}` is not `{expected}`; nothing else is read"
            ));
        }
    }
    let entries = predicate.get("resources").and_then(Value::as_array);
    let mut signed = BTreeMap::new();
    let mut digests = Vec::new();
    for entry in entries.into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let name = text("name").filter(|name| is_subject_name(name));
        let digest = text("digest").filter(|hex| unhex32(hex.as_bytes()).is_some());
        let (Some(name), Some(digest), Some("sha256")) = (name, digest, text("algorithm")) else {
            return Err("a resource is not a file with its SHA-256".to_owned());
        };
        if signed.insert(name, digest).is_some() {
            return Err("a resource comes twice".to_owned());
        }
        digests.push(digest);
    }
    let [subject] = &statement.subjects[..] else {
        return Err("not about one model".to_owned());
    };
    if signed.is_empty() || subject.sha256 != root_digest(digests.into_iter()) {
        return Err("the root digest is not that of the resources".to_owned());
    }
    let ignored = predicate.pointer("/serialization/ignore_paths").and_then(Value::as_array);
    Ok((signed, ignored.into_iter().flatten().filter_map(Value::as_str).collect()))
}

fn compare(
    dir: &Path,
    report: SignatureReport,
    signed: &BTreeMap<&str, &str>,
    ignored: &[&str],
) -> SignatureReport {
    let found = match files::walk(dir, "") {
        Ok(found) => found,
        Err(e) => {
            let place = dir.display().to_string();
            return SignatureReport::unreadable(&place, format!("cannot be listed: {e}"));
        }
    };
    let names: Vec<&str> = signed.keys().copied().collect();
    let mut wrong: Vec<(&str, String)> = Vec::new();
    for ((name, expected), digest) in signed.iter().zip(files::digests(dir, &names)) {
        match digest {
            Ok(digest) if digest.sha256 == *expected => {}
            Ok(_) => wrong.push((name, "the bytes were changed after signing".to_owned())),
            Err(FileProblem::Unreadable(detail)) => {
                let place = dir.join(name).display().to_string();
                return SignatureReport::unreadable(&place, format!("cannot be read: {detail}"));
            }
            Err(problem) => wrong.push((name, problem.reason())),
        }
    }
    let known: BTreeSet<&str> = names.into_iter().collect();
    let extra = found.keys().filter(|n| !known.contains(n.as_str()) && !is_ignored(n, ignored));
    wrong.extend(extra.map(|name| (name.as_str(), "not in the signature".to_owned())));
    let Some((first, reason)) = wrong.first() else { return report };
    let place = dir.join(first).display().to_string();
    let mut report = report.failed(SignatureState::SubjectMismatch, &place, reason.clone());
    let more = wrong.iter().skip(1).take(NAMED_MAX);
    report.warnings.extend(more.map(|(name, reason)| format!("{}: {reason}", shown(name))));
    report
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use forgelm_artifact::write::atomic;
    use serde_json::Value;

    use super::{MODEL_SIGNATURE, sign_model, verify_model};
    use crate::class::Class;
    use crate::documents::evidence::Builder;
    use crate::dsse::statement::PredicateType;
    use crate::dsse::verify::SignatureState;
    use crate::keys::trust::{TrustedKey, TrustedKeys, Usage};
    use crate::sign::{FileClaims, SignFileError};
    use crate::tests::signer;

    fn model(dir: &Path) {
        fs::create_dir_all(dir.join("sub")).unwrap();
        for (name, bytes) in [("a", "a"), ("b", "b"), ("sub/empty", "")] {
            atomic(&dir.join(name), bytes.as_bytes()).unwrap();
        }
    }

    fn sign(dir: &Path) -> Result<super::SignedModel, SignFileError> {
        let builder = Builder { version: "1".to_owned(), commit: None, target: "t".to_owned() };
        let claims = FileClaims {
            kind: PredicateType::ModelFolder,
            builder: &builder,
            operator: "alice@host",
            signed_at: "2026-06-01T12:00:00+00:00",
        };
        sign_model(dir, &claims, super::ModelSigner::Run(&signer(1)))
    }

    fn state(dir: &Path) -> (SignatureState, String) {
        let keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
        let report = verify_model(dir, None, &keys, None);
        (report.state, report.place)
    }

    #[test]
    fn the_root_digest_equals_the_vector_of_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            atomic(&dir.path().join(name), name.as_bytes()).unwrap();
        }
        let signed = sign(dir.path()).unwrap();
        let expected = "e5a01fee14e0ed5c48714f22180f25ad8365b53f9779f79dc4a3d7e93963f94a";
        assert_eq!((signed.root_sha256.as_str(), signed.n_files), (expected, 2));
        let text = fs::read(signed.signature).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["mediaType"], super::MEDIA_TYPE);
        let hint = &document["verificationMaterial"]["publicKey"]["hint"];
        assert_eq!(hint, signer(1).key.id().as_str());
    }

    #[test]
    fn every_change_to_a_signed_folder_is_noticed_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("model");
        model(&dir);
        assert_eq!(sign(&dir).unwrap().n_files, 3);
        assert_eq!(state(&dir).0, SignatureState::Valid);
        let change = |change: &dyn Fn(), undo: &dyn Fn(), name: &str| {
            change();
            let (found, place) = state(&dir);
            assert_eq!(found, SignatureState::SubjectMismatch, "{name}");
            assert!(place.ends_with(name), "{place}");
            undo();
            assert_eq!(state(&dir).0, SignatureState::Valid, "{name}");
        };
        let put = |name: &str, bytes: &str| atomic(&dir.join(name), bytes.as_bytes()).unwrap();
        let remove = |name: &str| fs::remove_file(dir.join(name)).unwrap();
        change(&|| put("a", "b"), &|| put("a", "a"), "a");
        change(&|| put("sub/empty", "x"), &|| put("sub/empty", ""), "sub/empty");
        change(&|| remove("b"), &|| put("b", "b"), "b");
        change(&|| put("sub/more", ""), &|| remove("sub/more"), "sub/more");
        // Of a work tree, and not of the model.
        put(".gitattributes", "x");
        assert_eq!(state(&dir).0, SignatureState::Valid);
        // The folder may be called otherwise.
        let moved = dir.with_file_name("renamed");
        fs::rename(&dir, &moved).unwrap();
        assert_eq!(state(&moved).0, SignatureState::Valid);
    }

    #[test]
    fn one_flipped_byte_of_the_signature_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        sign(dir.path()).unwrap();
        let path = dir.path().join(MODEL_SIGNATURE);
        let whole = fs::read(&path).unwrap();
        for i in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            atomic(&path, &bytes).unwrap();
            assert_ne!(state(dir.path()).0, SignatureState::Valid, "byte {i}");
        }
    }

    #[test]
    fn keys_that_do_not_count_and_folders_that_cannot_be_signed_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(sign(dir.path()), Err(SignFileError::File { .. })), "empty");
        assert_eq!(state(dir.path()).0, SignatureState::Absent);
        model(dir.path());
        sign(dir.path()).unwrap();
        assert!(matches!(sign(dir.path()), Err(SignFileError::Exists { .. })));
        let mut store = TrustedKeys::default();
        let mut key = TrustedKey::unlimited(signer(1).key.public(), None);
        key.usages = [Usage::Run].into();
        store.add(key);
        let report = verify_model(dir.path(), None, &store, None);
        assert_eq!(
            (report.state, report.class),
            (SignatureState::UntrustedKey, Class::NotCompared)
        );
        fs::remove_file(dir.path().join(MODEL_SIGNATURE)).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        assert!(matches!(sign(dir.path()), Err(SignFileError::File { .. })), "a link");
        assert!(!dir.path().join(MODEL_SIGNATURE).exists());
    }

    /// A folder that `model-signing` of PyPI signed, and what it accepted of ours
    /// (`tools/golden/model_signing_case.py`).
    #[test]
    fn p256_bundles_are_read_and_written_as_model_signing_has_them() {
        use crate::keys::p256::P256Key;
        use std::os::unix::fs::PermissionsExt as _;
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/model_signing");
        let keys = TrustedKeys::of_key_files(&[golden.join("key.pub")]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("model");
        for name in ["a.bin", "config.json", "sub/b.bin"] {
            fs::create_dir_all(dir.join("sub")).unwrap();
            fs::copy(golden.join("model").join(name), dir.join(name)).unwrap();
        }
        let theirs = golden.join("theirs.sig");
        let state = |signature: &Path, keys: &TrustedKeys| {
            verify_model(&dir, Some(signature), keys, None).state
        };
        assert_eq!(state(&theirs, &keys), SignatureState::Valid);
        let others = TrustedKeys::of_public_keys([signer(1).key.public()]);
        assert_eq!(state(&theirs, &others), SignatureState::UntrustedKey);

        let key = dir.with_file_name("key.pem");
        fs::copy(golden.join("key.pem"), &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let key = P256Key::load(&key).unwrap().unwrap();
        let builder = Builder { version: "1".to_owned(), commit: None, target: "t".to_owned() };
        let claims = FileClaims {
            kind: PredicateType::ModelFolder,
            builder: &builder,
            operator: "alice@host",
            signed_at: "2026-06-01T12:00:00+00:00",
        };
        let signed = sign_model(&dir, &claims, super::ModelSigner::P256(&key)).unwrap();
        let ours = fs::read(&signed.signature).unwrap();
        assert_eq!(ours, fs::read(golden.join("ours.sig")).unwrap(), "what the tool accepted");
        assert_eq!(state(&signed.signature, &keys), SignatureState::Valid);
        for i in (0..ours.len()).step_by(5) {
            let mut bad = ours.clone();
            bad[i] ^= 1;
            atomic(&signed.signature, &bad).unwrap();
            assert_ne!(state(&signed.signature, &keys), SignatureState::Valid, "byte {i}");
        }
        atomic(&signed.signature, &ours).unwrap();
        atomic(&dir.join("sub/b.bin"), b"other\n").unwrap();
        assert_eq!(state(&signed.signature, &keys), SignatureState::SubjectMismatch);
        assert_eq!(state(&theirs, &keys), SignatureState::SubjectMismatch);
    }
}
