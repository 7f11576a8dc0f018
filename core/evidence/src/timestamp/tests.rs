//! Tokens of an authority that nobody here wrote: `openssl ts`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use forgelm_artifact::write::atomic;

use super::attach::Stamping;
use super::request::stamp;
use super::token::Token;
use super::{Authorities, Authority, Proven};
use crate::bundle::ATTESTATION;
use crate::bundle::verify::{BundleOptions, verify_bundle};
use crate::class::Class;
use crate::dsse::Envelope;
use crate::dsse::verify::SignatureState;
use crate::keys::trust::{Revocation, TrustedKey, TrustedKeys, Usage};
use crate::model::verify_model;
use crate::tests::{signer, write_run_stamped};

const CONFIG: &str = "\
[ca]
default_ca = authority
[authority]
dir = .
database = index.txt
new_certs_dir = .
serial = serial
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[stamps]
basicConstraints = critical, CA:false
extendedKeyUsage = critical, timeStamping
[other]
extendedKeyUsage = critical, codeSigning, timeStamping
[tsa]
default_tsa = service
[service]
serial = tsa_serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
";

/// An authority in a folder of its own: a certificate that certifies, and one that stamps.
struct OpenSsl {
    dir: tempfile::TempDir,
    /// Words of `openssl ts -reply` more.
    more: Vec<&'static str>,
}

/// Runs `openssl` with words split at spaces.
fn openssl(dir: &Path, line: &str) -> std::process::Output {
    Command::new("openssl").args(line.split(' ')).current_dir(dir).output().unwrap()
}

impl OpenSsl {
    /// Valid from and until, as `20200101000000Z`; `extensions` is a section of [`CONFIG`].
    fn new(key: &str, extensions: &str, (from, until): (&str, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        put("c.cnf", CONFIG);
        put("index.txt", "");
        put("serial", "1000\n");
        put("tsa_serial", "01\n");
        let run = |line: &str| {
            let done = openssl(dir.path(), line);
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{line}: {said}");
        };
        run(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 3650",
        );
        run(&format!("req -new -newkey {key} -nodes -keyout tsa.key -out tsa.csr -subj /CN=tsa"));
        run(&format!(
            "ca -batch -notext -config c.cnf -in tsa.csr -out tsa.pem -startdate {from} -enddate {until} -extensions {extensions}"
        ));
        Self { dir, more: Vec::new() }
    }

    fn usual() -> Self {
        Self::new("rsa:2048", "stamps", ("20200101000000Z", "20490101000000Z"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn trusting(&self, certificate: &str) -> Authorities {
        let mut all = Authorities::default();
        all.add_pem(&fs::read(self.path(certificate)).unwrap()).unwrap();
        all
    }
}

impl Authority for OpenSsl {
    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        atomic(&self.path("q.tsq"), request).unwrap();
        let line = "ts -reply -config c.cnf -queryfile q.tsq -signer tsa.pem -inkey tsa.key -chain ca.pem -out r.tsr";
        let line = [&[line], &self.more[..]].concat().join(" ");
        let done = openssl(self.dir.path(), &line);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if !done.status.success() {
            return Err(said);
        }
        Ok(fs::read(self.path("r.tsr")).unwrap())
    }
}

/// An authority that always answers the same.
struct Canned(Vec<u8>);

impl Authority for Canned {
    fn ask(&self, _request: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.0.clone())
    }
}

fn judged(response: &[u8], authorities: &Authorities) -> Result<(), String> {
    let proven = Proven::of_signatures(&[b"signature"], &[response.to_vec()], authorities);
    match (proven.moment(0), proven.notes.as_slice()) {
        (Some(_), []) => Ok(()),
        (None, [note]) => Err(note.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_of_openssl_count_and_openssl_verifies_them_too() {
    for (key, more) in [
        ("rsa:2048", vec![]),
        ("ec -pkeyopt ec_paramgen_curve:P-384", vec![]),
        ("rsa:3072", vec!["-sha512"]),
    ] {
        let mut authority = OpenSsl::new(key, "stamps", ("20200101000000Z", "20490101000000Z"));
        authority.more = more;
        let response = stamp(b"signature", &authority).unwrap();
        let token = Token::read(&response).unwrap();
        assert_eq!(token.latest.0 - token.time.0, 1_000_000, "the accuracy is a second");
        assert_eq!(judged(&response, &authority.trusting("ca.pem")), Ok(()), "{key}");
        assert_eq!(judged(&response, &authority.trusting("tsa.pem")), Ok(()), "{key}");
        atomic(&authority.path("signature"), b"signature").unwrap();
        atomic(&authority.path("kept.tsr"), &response).unwrap();
        let line = "ts -verify -data signature -in kept.tsr -CAfile ca.pem";
        let done = openssl(authority.dir.path(), line);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn tokens_of_others_of_other_bytes_and_of_expired_certificates_do_not_count() {
    let authority = OpenSsl::usual();
    let response = stamp(b"signature", &authority).unwrap();
    let ca = authority.trusting("ca.pem");
    let refused = |response: &[u8], by: &Authorities, expected: &str| {
        let reason = judged(response, by).unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    };
    refused(&response, &Authorities::default(), "was not named (`--tsa-cert`)");
    refused(&response, &OpenSsl::usual().trusting("ca.pem"), "its chain is not good");
    let other = stamp(b"something else", &authority).unwrap();
    refused(&other, &ca, "of other bytes");
    let old = OpenSsl::new("rsa:2048", "stamps", ("20200101000000Z", "20210101000000Z"));
    let of_old = stamp(b"signature", &old).unwrap();
    refused(&of_old, &old.trusting("ca.pem"), "is not valid then");
    refused(&of_old, &old.trusting("tsa.pem"), "is not valid then");
    refused(b"garbage", &ca, "not a response of a time stamp authority");
    refused(&response[..response.len() - 1], &ca, "not a response");
    // Of another purpose too, which `openssl ts` itself does not sign with.
    let wide = OpenSsl::new("rsa:2048", "other", ("20200101000000Z", "20490101000000Z"));
    assert!(stamp(b"signature", &wide).is_err());
}

#[test]
fn a_changed_byte_of_a_token_never_counts_as_another_time() {
    let authority = OpenSsl::usual();
    let ca = authority.trusting("ca.pem");
    let response = stamp(b"signature", &authority).unwrap();
    let time = |response: &[u8]| {
        Proven::of_signatures(&[b"signature"], &[response.to_vec()], &ca).moment(0)
    };
    let good = time(&response);
    assert!(good.is_some());
    let mut n_refused = 0;
    for i in 0..response.len() {
        let mut bad = response.clone();
        bad[i] ^= 1;
        let found = time(&bad);
        assert!(found.is_none() || found == good, "byte {i}");
        n_refused += usize::from(found.is_none());
    }
    // The rest is of certificates that no chain needs.
    assert!(n_refused * 2 > response.len(), "{n_refused} of {}", response.len());
}

#[test]
fn answers_that_are_none_to_the_request_are_refused() {
    let authority = OpenSsl::usual();
    let before = stamp(b"signature", &authority).unwrap();
    let refused = |answer: &[u8], expected: &str| {
        let reason = stamp(b"signature", &Canned(answer.to_vec())).unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    };
    refused(&before, "nonce");
    refused(&stamp(b"other", &authority).unwrap(), "of other bytes");
    refused(&[0; 70_000], "larger than 65536");
    refused(b"", "not a response");
    // PKIStatusInfo with rejection (2) and a text.
    refused(b"\x30\x0b\x30\x09\x02\x01\x02\x30\x04\x0c\x02no", "refused (status 2): \"no\"");
}

#[test]
fn a_stamped_run_verifies_and_its_stamp_outlives_the_key() {
    let authority = OpenSsl::usual();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let bundle = write_run_stamped(&out, &signer(1), &authority);
    assert_eq!(bundle.unstamped, []);
    let report = |keys: &TrustedKeys| {
        let keys = keys.clone();
        verify_bundle(&out, &BundleOptions { keys, ..BundleOptions::default() })
    };
    let mut keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    let plain = report(&keys);
    assert_eq!((plain.class, plain.signature.timestamped), (Class::Accepted, false));
    assert!(plain.signature.warnings[0].contains("was not named"), "{:?}", plain.signature);
    keys.require_stamps(&[Usage::Run]);
    assert_eq!(report(&keys).class, Class::NotCompared);
    let ca = fs::read(authority.path("ca.pem")).unwrap();
    keys.add_authorities(&ca).unwrap();
    let stamped = report(&keys);
    assert_eq!((stamped.class, stamped.signature.timestamped), (Class::Accepted, true));
    let model = verify_model(&out.join("final_model"), None, &keys, None);
    assert_eq!((model.state, model.timestamped), (SignatureState::Valid, true));

    // The key was stolen after the stamp, and before it; the stamp is of now.
    let with = |change: &dyn Fn(&mut TrustedKey), is_stamped: bool| {
        let mut key = TrustedKey::unlimited(signer(1).key.public(), None);
        change(&mut key);
        let mut keys = TrustedKeys::default();
        keys.add(key);
        if is_stamped {
            keys.add_authorities(&ca).unwrap();
        }
        report(&keys).signature
    };
    let at = |text: &str| format!("{text}T00:00:00Z").parse().unwrap();
    let compromised = |when: &'static str| {
        move |key: &mut TrustedKey| {
            key.revocation = Some(Revocation::new(at(when), "compromised"));
        }
    };
    let later = with(&compromised("2100-01-01"), true);
    assert_eq!(later.state, SignatureState::Valid);
    assert!(later.warnings[0].contains("a trusted time stamp proves"), "{later:?}");
    assert_eq!(with(&compromised("2100-01-01"), false).state, SignatureState::Revoked);
    assert_eq!(with(&compromised("2020-01-01"), true).state, SignatureState::Revoked);
    // It says that it signed on 2026-01-01, when the key was no longer valid; the stamp is of now.
    let expired = |key: &mut TrustedKey| key.not_after = Some(at("2025-12-31"));
    assert_eq!(with(&expired, true).state, SignatureState::Expired);
}

#[test]
fn changes_to_a_stamped_file_are_noticed_and_a_stripped_stamp_is_none() {
    let authority = OpenSsl::usual();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    write_run_stamped(&out, &signer(1), &authority);
    let mut keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    keys.add_authorities(&fs::read(authority.path("ca.pem")).unwrap()).unwrap();
    let path = out.join(ATTESTATION);
    let whole = fs::read(&path).unwrap();
    let check = |bytes: &[u8]| {
        atomic(&path, bytes).unwrap();
        let options = BundleOptions { keys: keys.clone(), ..BundleOptions::default() };
        verify_bundle(&out, &options).signature
    };
    assert!(check(&whole).timestamped);
    let text = String::from_utf8(whole.clone()).unwrap();
    let member = text.find("\"timestamps\"").unwrap();
    for changed in [
        text.replace("\"timestamps\"", "\"timestampt\""),
        text.replace("\"rfc3161\"", "\"rfc3162\""),
        text.replace("\"timestamps\"", " \"timestamps\""),
    ] {
        assert_eq!(check(changed.as_bytes()).state, SignatureState::Invalid, "{changed}");
    }
    // Within the token it is the token that no longer counts.
    let mut bad = whole.clone();
    let middle = member + 200;
    bad[middle] = if bad[middle] == b'A' { b'B' } else { b'A' };
    let found = check(&bad);
    assert_eq!((found.state, found.timestamped), (SignatureState::Valid, false));
    assert!(found.warnings[0].contains("does not count"), "{found:?}");
    let mut bare = Envelope::parse(&whole).unwrap();
    bare.timestamps.clear();
    let found = check(&bare.to_bytes());
    assert_eq!((found.state, found.timestamped), (SignatureState::Valid, false));
}

#[test]
fn a_run_goes_on_without_tokens_unless_they_are_required() {
    let nobody = Canned(b"garbage".to_vec());
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_run_stamped(dir.path(), &signer(1), &nobody);
    let files: Vec<&str> = bundle.unstamped.iter().map(|u| u.file.as_str()).collect();
    let checkpoint = "audit_log.jsonl.checkpoint.dsse.json";
    assert_eq!(files, ["final_model/model.sig", checkpoint, ATTESTATION]);
    let log = fs::read_to_string(dir.path().join("audit_log.jsonl")).unwrap();
    assert_eq!(log.matches("\"signing.timestamp_failed\"").count(), 3);
    let keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    let report = verify_bundle(dir.path(), &BundleOptions { keys, ..BundleOptions::default() });
    assert_eq!(report.class, Class::Accepted, "{:?}", report.findings);

    let required = Stamping { authority: &nobody, is_required: true };
    let kind = super::attach::Kind::Envelope;
    let refused = required.attach(dir.path(), ATTESTATION, kind).unwrap_err();
    assert!(refused.to_string().contains("`signing.require_timestamp` demands"), "{refused}");
}

#[test]
fn a_model_that_a_p256_key_signed_is_stamped_too() {
    use crate::documents::evidence::Builder;
    use crate::dsse::statement::PredicateType;
    use crate::keys::p256::P256Key;
    use crate::model::{ModelSigner, sign_model};
    use crate::sign::FileClaims;
    use std::os::unix::fs::PermissionsExt as _;
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/model_signing");
    let dir = tempfile::tempdir().unwrap();
    let (model, key) = (dir.path().join("model"), dir.path().join("key.pem"));
    fs::create_dir(&model).unwrap();
    atomic(&model.join("a"), b"a").unwrap();
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
    sign_model(&model, &claims, ModelSigner::P256(&key)).unwrap();
    let authority = OpenSsl::usual();
    let stamping = Stamping { authority: &authority, is_required: true };
    stamping.attach(&model, "model.sig", super::attach::Kind::Model).unwrap();
    let mut keys = TrustedKeys::of_key_files(&[golden.join("key.pub")]).unwrap();
    keys.require_stamps(&[Usage::Model]);
    let verified = |keys: &TrustedKeys| verify_model(&model, None, keys, None);
    assert_eq!(verified(&keys).state, SignatureState::NotChecked);
    keys.add_authorities(&fs::read(authority.path("ca.pem")).unwrap()).unwrap();
    let found = verified(&keys);
    assert_eq!((found.state, found.timestamped), (SignatureState::Valid, true), "{found:?}");
    let bundle: serde_json::Value =
        serde_json::from_slice(&fs::read(model.join("model.sig")).unwrap()).unwrap();
    let place =
        "/verificationMaterial/timestampVerificationData/rfc3161Timestamps/0/signedTimestamp";
    assert!(bundle.pointer(place).is_some_and(serde_json::Value::is_string));
}
