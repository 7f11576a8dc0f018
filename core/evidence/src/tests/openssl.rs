//! The same signatures, checked by OpenSSL's command line.

use std::path::Path;
use std::process::{Command, Output};

use super::write_run;
use crate::bundle::{ATTESTATION, PUBLIC_KEY};
use crate::dsse::{Envelope, pae};
use crate::keys::file::{NewKey, generate_key_file, public_key_path};
use crate::keys::{KeyOrigin, RunSigner};
use crate::secret::Secret;

fn openssl(args: &[&Path]) -> Option<Output> {
    Command::new("openssl").args(args).output().ok()
}

#[test]
fn openssl_verifies_the_attestation_and_reads_the_key_files() {
    if openssl(&[Path::new("version")]).is_none() {
        println!("SKIPPED: there is no `openssl` on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key_path = dir.path().join("k/signing.key");
    let key = generate_key_file(&key_path, &NewKey::default()).unwrap();
    let public_pem = key.public().to_pem();
    // OpenSSL derives the same public key from our private key file.
    let derive = ["pkey", "-in", key_path.to_str().unwrap(), "-pubout"].map(Path::new);
    let derived = openssl(&derive).unwrap();
    assert_eq!(String::from_utf8(derived.stdout).unwrap(), public_pem);
    assert_eq!(std::fs::read_to_string(public_key_path(&key_path)).unwrap(), public_pem);

    let out = dir.path().join("run");
    let signer = RunSigner { key, origin: KeyOrigin::Provisioned, label: None };
    write_run(&out, Ok(&signer), "fg-0123456789ab");
    let envelope = Envelope::parse(&std::fs::read(out.join(ATTESTATION)).unwrap()).unwrap();
    let (message, signature) = (dir.path().join("pae"), dir.path().join("sig"));
    let put = |path: &Path, bytes: &[u8]| forgelm_artifact::write::atomic(path, bytes).unwrap();
    let signed = pae(&envelope.payload_type, &envelope.payload);
    put(&message, &signed);
    put(&signature, &envelope.signatures[0].sig);
    let public_key = out.join(PUBLIC_KEY);
    let verify = || {
        let word = Path::new;
        let args = [
            word("pkeyutl"),
            word("-verify"),
            word("-pubin"),
            word("-inkey"),
            &public_key,
            word("-rawin"),
            word("-in"),
            &message,
            word("-sigfile"),
            &signature,
        ];
        openssl(&args).unwrap()
    };
    let good = verify();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let mut changed = signed;
    changed[40] ^= 1;
    put(&message, &changed);
    assert!(!verify().status.success());
}

#[test]
fn openssl_opens_our_encrypted_keys_with_their_passphrase_alone() {
    if openssl(&[Path::new("version")]).is_none() {
        println!("SKIPPED: there is no `openssl` on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    let passphrase = Secret::new("correct horse battery staple".to_owned()).unwrap();
    let new = NewKey { label: Some("ci-prod"), passphrase: Some(&passphrase) };
    let key = generate_key_file(&path, &new).unwrap();
    let derive = |with: &str| {
        let word = Path::new;
        let args = [word("pkey"), word("-in"), &path, word("-pubout"), word("-passin"), word(with)];
        openssl(&args).unwrap()
    };
    let derived = derive("pass:correct horse battery staple");
    assert!(derived.status.success(), "{}", String::from_utf8_lossy(&derived.stderr));
    assert_eq!(String::from_utf8(derived.stdout).unwrap(), key.public().to_pem());
    assert!(!derive("pass:wrong").status.success());
    // The line with the label is no obstacle in the public half either.
    let public = public_key_path(&path);
    let args = ["pkey", "-pubin", "-in", public.to_str().unwrap(), "-pubout"].map(Path::new);
    let read = openssl(&args).unwrap();
    assert_eq!(String::from_utf8(read.stdout).unwrap(), key.public().to_pem());
}
