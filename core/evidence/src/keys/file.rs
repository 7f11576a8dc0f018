//! Key files: made once, never overwritten, read only when no one else could have read them.
//!
//! This module opens its files itself instead of through `forgelm_artifact`: a private key must be
//! created exclusively, without following links, with mode 0600 from its first byte, and must
//! never pass through a temporary name.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{KeyError, PublicKey, SigningKey, pem};

/// A key file is under 200 bytes; nothing above this is read.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// The file beside `path` that holds the public half: `<path>.pub`.
#[must_use]
pub fn public_key_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Makes a new key pair: PKCS#8 PEM in `path` with mode 0600, SubjectPublicKeyInfo PEM in
/// `<path>.pub` with mode 0644. A missing parent folder is made with mode 0700.
///
/// # Errors
/// [`KeyError::Exists`] if either file is there; otherwise what the system refused.
pub fn generate_key_file(path: &Path) -> Result<SigningKey, KeyError> {
    let public_path = public_key_path(path);
    for taken in [path, &public_path] {
        if taken.symlink_metadata().is_ok() {
            return Err(KeyError::Exists { path: taken.to_owned() });
        }
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|e| io(parent, "create the folder of", e))?;
    }
    let key = SigningKey::generate()?;
    create_exclusive(path, 0o600, key.to_pem().as_bytes())?;
    create_exclusive(&public_path, 0o644, key.public().to_pem().as_bytes())?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| io(path, "store", e))?;
    Ok(key)
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
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| io(path, "write", e))
}

/// Loads a private key after the checks: a regular file, no link, owned by this user or root, with
/// no permission for anyone else.
///
/// # Errors
/// One [`KeyError`] for each check.
pub fn load_key_file(path: &Path) -> Result<SigningKey, KeyError> {
    let text = read_checked(path)?;
    let seed = pem::decode_private(&text)
        .map_err(|detail| KeyError::Malformed { place: format!("`{}`", path.display()), detail })?;
    Ok(SigningKey::from_seed(&seed))
}

fn read_checked(path: &Path) -> Result<Zeroizing<String>, KeyError> {
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
    let place = || format!("`{}`", path.display());
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
    std::str::from_utf8(&bytes).ok().and_then(PublicKey::from_pem).ok_or_else(|| {
        KeyError::Malformed {
            place: place(),
            detail: "not an Ed25519 public key; expected `-----BEGIN PUBLIC KEY-----`",
        }
    })
}

pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> KeyError {
    KeyError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::{KeyError, generate_key_file, load_key_file, load_public_key, public_key_path};

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
}
