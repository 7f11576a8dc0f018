//! Key files: made once, never overwritten, read only when no one else could have read them.
//!
//! This module opens its files itself instead of through `forgelm_artifact`: a private key must be
//! created exclusively, without following links, with mode 0600 from its first byte, and must
//! never pass through a temporary name: it has none until it is whole.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use forgelm_artifact::Quoted;
use zeroize::Zeroizing;

use super::p256::P256PublicKey;
use super::{KeyError, PublicKey, SigningKey, pem};
use crate::secret::Secret;

/// A key file is under 200 bytes; nothing above this is read.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// The file beside `path` that holds the public half: `<path>.pub`.
#[must_use]
pub fn public_key_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// How a new key pair is written.
#[derive(Default)]
pub struct NewKey<'a> {
    /// Its name, in both files.
    pub label: Option<&'a str>,
    /// Encrypts the private file.
    pub passphrase: Option<&'a Secret>,
}

/// Makes a new key pair: PKCS#8 PEM in `path` with mode 0600, SubjectPublicKeyInfo PEM in
/// `<path>.pub` with mode 0644. A missing parent folder is made with mode 0700. Either both files
/// are there afterwards, whole, or none that was not there before.
///
/// # Errors
/// [`KeyError::Exists`] if either file is there; [`KeyError::Label`]; otherwise what the system
/// refused.
pub fn generate_key_file(path: &Path, new: &NewKey<'_>) -> Result<SigningKey, KeyError> {
    if let Some(label) = new.label.filter(|label| !pem::is_name(label)) {
        return Err(KeyError::Label { label: Quoted(label).to_string() });
    }
    let public_path = public_key_path(path);
    for taken in [path, &public_path] {
        if taken.symlink_metadata().is_ok() {
            return Err(KeyError::Exists { path: taken.to_owned() });
        }
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(|e| io(parent, "create the folder of", e))?;
    let key = SigningKey::generate()?;
    let name = pem::name_line(new.label);
    let private =
        Zeroizing::new([name.as_bytes(), key.to_pem(new.passphrase)?.as_bytes()].concat());
    let public = name + &key.public().to_pem();
    create_whole(path, 0o600, &private)?;
    if let Err(error) = create_whole(&public_path, 0o644, public.as_bytes()) {
        // Nobody has seen this key: a private half without a public one would only be in the way.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| io(path, "store", e))?;
    Ok(key)
}

/// Creates a file that was not there, with all its bytes or not at all. It has no name until it is
/// whole; where the file system cannot do that, it is made under its name and taken away again when
/// it cannot be finished.
fn create_whole(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), KeyError> {
    match create_nameless(path, mode, bytes) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            Err(KeyError::Exists { path: path.to_owned() })
        }
        // Also where this way does not work: the plain one finds the cause, if it is another.
        Err(_) => create_exclusive(path, mode, bytes),
    }
}

fn create_nameless(path: &Path, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, parent, flags, Mode::from_raw_mode(mode))?);
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn create_exclusive(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), KeyError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
            _ => io(path, "create", e),
        })?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|e| {
        let _ = std::fs::remove_file(path);
        io(path, "write", e)
    })
}

/// A private key file that was read.
pub struct KeyFile {
    /// The key.
    pub key: SigningKey,
    /// Its name, if the file has one.
    pub label: Option<String>,
}

/// Loads a private key after the checks: a regular file, no link, owned by this user or root, with
/// no permission for anyone else.
///
/// # Errors
/// One [`KeyError`] for each check.
pub fn load_key_file(path: &Path, passphrase: Option<&Secret>) -> Result<KeyFile, KeyError> {
    let text = read_checked(path)?;
    let seed = pem::decode_private(&text, passphrase)
        .map_err(|problem| problem.at(format!("`{}`", path.display())))?;
    Ok(KeyFile { key: SigningKey::from_seed(&seed), label: pem::name(&text) })
}

pub(super) fn read_checked(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let before = path.symlink_metadata().map_err(|e| match e.kind() {
        ErrorKind::NotFound => KeyError::Missing { path: path.to_owned() },
        _ => io(path, "read", e),
    })?;
    let found = |found| KeyError::NotRegular { path: path.to_owned(), found };
    if before.is_symlink() {
        return Err(found("a symbolic link"));
    }
    if !before.is_file() {
        return Err(found(if before.is_dir() { "a folder" } else { "a device or a pipe" }));
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| io(path, "read", e))?;
    // The checks that matter are of the open file: nobody can exchange it any more.
    let open = file.metadata().map_err(|e| io(path, "read", e))?;
    if !open.is_file() {
        return Err(found("not a regular file"));
    }
    let user = rustix::process::geteuid().as_raw();
    if open.uid() != user && open.uid() != 0 {
        return Err(KeyError::Owner { path: path.to_owned(), uid: open.uid() });
    }
    if open.mode() & 0o077 != 0 {
        return Err(KeyError::Permissions { path: path.to_owned(), mode: open.mode() & 0o7777 });
    }
    let mut text = Zeroizing::new(String::with_capacity(512));
    let read = file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text);
    match read {
        Ok(_) => Ok(text),
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(KeyError::Malformed {
            place: format!("`{}`", path.display()),
            detail: "not UTF-8 text; expected a PEM document",
        }),
        Err(e) => Err(io(path, "read", e)),
    }
}

/// Loads a public key from a SubjectPublicKeyInfo PEM file.
///
/// # Errors
/// [`KeyError::Missing`], [`KeyError::Malformed`] or [`KeyError::Io`].
pub fn load_public_key(path: &Path) -> Result<PublicKey, KeyError> {
    load_named_public_key(path).map(|(key, _)| key)
}

/// As [`load_public_key`], with the name that the file gives the key.
///
/// # Errors
/// As [`load_public_key`].
pub fn load_named_public_key(path: &Path) -> Result<(PublicKey, Option<String>), KeyError> {
    match load_any_public_key(path)? {
        (AnyPublicKey::Ed25519(key), name) => Ok((key, name)),
        (AnyPublicKey::P256(_), _) => Err(not_a_public_key(path)),
    }
}

/// A public key that can count for something.
pub(super) enum AnyPublicKey {
    /// For everything.
    Ed25519(PublicKey),
    /// For model folders.
    P256(P256PublicKey),
}

fn not_a_public_key(path: &Path) -> KeyError {
    KeyError::Malformed {
        place: format!("`{}`", path.display()),
        detail: "not an Ed25519 public key; expected `-----BEGIN PUBLIC KEY-----`",
    }
}

/// As [`load_named_public_key`], of either kind.
pub(super) fn load_any_public_key(path: &Path) -> Result<(AnyPublicKey, Option<String>), KeyError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(
        |e| match e.kind() {
            ErrorKind::NotFound => KeyError::Missing { path: path.to_owned() },
            _ => io(path, "read", e),
        },
    )?;
    if !file.metadata().map_err(|e| io(path, "read", e))?.is_file() {
        return Err(KeyError::NotRegular { path: path.to_owned(), found: "not a regular file" });
    }
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| io(path, "read", e))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let ed25519 = PublicKey::from_pem(text).map(AnyPublicKey::Ed25519);
    let key = ed25519.or_else(|| P256PublicKey::from_pem(text).map(AnyPublicKey::P256));
    Ok((key.ok_or_else(|| not_a_public_key(path))?, pem::name(text)))
}

pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> KeyError {
    KeyError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::{
        KeyError, NewKey, create_exclusive, create_nameless, create_whole, load_named_public_key,
        load_public_key, public_key_path,
    };
    use crate::keys::SigningKey;
    use crate::secret::Secret;

    fn generate_key_file(path: &std::path::Path) -> Result<SigningKey, KeyError> {
        super::generate_key_file(path, &NewKey::default())
    }

    fn load_key_file(path: &std::path::Path) -> Result<SigningKey, KeyError> {
        super::load_key_file(path, None).map(|file| file.key)
    }

    fn mode(path: &std::path::Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_pair_has_its_modes_and_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/deep/signing.key");
        let key = generate_key_file(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&public_key_path(&path)), 0o644);
        assert_eq!(load_key_file(&path).unwrap().id(), key.id());
        assert_eq!(load_public_key(&public_key_path(&path)).unwrap(), key.public());
        assert!(matches!(generate_key_file(&path), Err(KeyError::Exists { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(generate_key_file(&path), Err(KeyError::Exists { .. })), "public half");
    }

    #[test]
    fn fault_097_every_unsafe_key_file_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        assert!(matches!(load_key_file(&path), Err(KeyError::Missing { .. })));
        generate_key_file(&path).unwrap();
        for bad in [0o640, 0o604, 0o660, 0o601, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(bad)).unwrap();
            let error = load_key_file(&path).err().unwrap();
            assert!(matches!(error, KeyError::Permissions { mode, .. } if mode == bad));
            assert!(error.to_string().contains("chmod 600"));
        }
        for good in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(good)).unwrap();
            assert!(load_key_file(&path).is_ok());
        }
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(
            load_key_file(&link),
            Err(KeyError::NotRegular { found: "a symbolic link", .. })
        ));
        assert!(matches!(generate_key_file(&link), Err(KeyError::Exists { .. })));
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(generate_key_file(&dangling), Err(KeyError::Exists { .. })));
        assert!(matches!(load_key_file(dir.path()), Err(KeyError::NotRegular { .. })));
        let broken = dir.path().join("broken");
        let text = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        forgelm_artifact::write::atomic(&broken, text).unwrap();
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load_key_file(&broken).err().unwrap();
        assert!(matches!(error, KeyError::Malformed { .. }));
        assert!(!error.is_runtime());
    }

    #[test]
    fn a_key_has_its_label_in_both_files_and_opens_with_its_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let secret = |text: &str| Secret::new(text.to_owned()).unwrap();
        let passphrase = secret("correct horse");
        let new = NewKey { label: Some("ci-prod"), passphrase: Some(&passphrase) };
        let made = super::generate_key_file(&path, &new).unwrap();
        let loaded = super::load_key_file(&path, Some(&passphrase)).unwrap();
        assert_eq!((loaded.key.id(), loaded.label.as_deref()), (made.id(), Some("ci-prod")));
        let (public, label) = load_named_public_key(&public_key_path(&path)).unwrap();
        assert_eq!((public, label.as_deref()), (made.public(), Some("ci-prod")));
        let error = super::load_key_file(&path, None).err().unwrap();
        assert!(matches!(error, KeyError::PassphraseMissing { .. }));
        assert!(error.to_string().contains("FORGELM_SIGNING_KEY_PASSPHRASE"));
        let error = super::load_key_file(&path, Some(&secret("wrong horse"))).err().unwrap();
        assert!(matches!(error, KeyError::PassphraseWrong { .. }));
        assert!(!error.to_string().contains("wrong horse"), "{error}");
        assert!(!error.is_runtime());
        let bad = NewKey { label: Some("a\nb"), passphrase: None };
        let error = super::generate_key_file(&dir.path().join("other"), &bad).err().unwrap();
        assert!(matches!(error, KeyError::Label { .. }));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a refused key left a file");
    }

    #[test]
    fn a_key_file_is_whole_or_not_there_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for has_name in [false, true] {
            let way = |path: &std::path::Path, mode, bytes: &[u8]| {
                if has_name {
                    create_exclusive(path, mode, bytes).is_ok()
                } else {
                    create_nameless(path, mode, bytes).is_ok()
                }
            };
            let path = dir.path().join(format!("f{has_name}"));
            assert!(way(&path, 0o600, b"one"), "{has_name}");
            assert_eq!(mode(&path), 0o600);
            assert!(!way(&path, 0o644, b"two"), "{has_name}");
            assert_eq!(fs::read(&path).unwrap(), b"one");
            assert_eq!(mode(&path), 0o600);
            let again = create_whole(&path, 0o600, b"three");
            assert!(matches!(again, Err(KeyError::Exists { .. })));
        }
        // A public half that cannot be made takes the private one with it.
        let long = dir.path().join("x".repeat(253));
        assert!(matches!(generate_key_file(&long), Err(KeyError::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "half a pair is left");
    }
}
