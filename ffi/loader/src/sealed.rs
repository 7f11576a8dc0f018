//! The bytes of a library: read once, hashed, and opened from a sealed copy, so that nothing can be
//! exchanged between the check and the use.

use crate::error::{LibraryError, Problem};
use forgelm_plugin::Signature;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::time::Duration;

/// A library that was read and not opened: what is checked is what will run.
#[derive(Debug)]
pub struct LibraryFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sha256: String,
    pub(crate) signature: Option<Signature>,
}

impl LibraryFile {
    /// Reads a file, whatever it is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self, LibraryError> {
        let bytes = std::fs::read(path).map_err(|error| LibraryError {
            path: path.to_owned(),
            problem: Problem::Read(error),
        })?;
        let sha256 = sha256(&bytes);
        Ok(Self { path: path.to_owned(), bytes, sha256, signature: None })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of its bytes, in hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Who signed them, as far as the caller has said.
    #[must_use]
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// The same, with the signature over these bytes that the caller has verified.
    #[must_use]
    pub fn signed(self, signature: Option<Signature>) -> Self {
        Self { signature, ..self }
    }
}

/// SHA-256 in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Opens exactly these bytes. An unresolved symbol fails here, not in step 10 000; two plugins
/// never see each other's symbols.
pub(crate) fn open(path: &Path, bytes: &[u8]) -> Result<&'static Library, Problem> {
    let place = sealed_copy(path, bytes).map_err(Problem::Seal)?;
    // SAFETY: runs the constructors of a library that the user named: loading means trust.
    let library = unsafe { Library::open(Some(&place), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| Problem::Open(why(&error, &place)))?;
    // Never unloaded.
    Ok(Box::leak(Box::new(library)))
}

/// The system's words without the name of the copy, which says nothing to the user.
fn why(error: &libloading::Error, place: &Path) -> String {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text = cause.to_string();
    }
    let prefix = format!("{}: ", place.display());
    text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
}

/// How often a copy is tried to be sealed.
#[cfg(target_os = "linux")]
const SEAL_TRIES: u32 = 50;
/// From one try to the next.
#[cfg(target_os = "linux")]
const SEAL_PAUSE: Duration = Duration::from_millis(20);

/// A memory file that nobody can change, by the name that the system knows it under.
#[cfg(target_os = "linux")]
fn sealed_copy(path: &Path, bytes: &[u8]) -> std::io::Result<PathBuf> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use rustix::io::Errno;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("forgelm-plugin-{}", name.chars().take(100).collect::<String>());
    let file = memfd_create(&*name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    // The system refuses while it holds a page itself, as it does in passing when it tidies memory.
    let mut n_tries = 1;
    while let Err(error) = fcntl_add_seals(&file, seals) {
        if error != Errno::BUSY || n_tries == SEAL_TRIES {
            return Err(error.into());
        }
        n_tries += 1;
        std::thread::sleep(SEAL_PAUSE);
    }
    let place = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Kept open: the system takes another file under the same name for the same library.
    std::mem::forget(file);
    Ok(place)
}

/// Elsewhere there are no sealed files: the file itself is opened.
#[cfg(not(target_os = "linux"))]
fn sealed_copy(path: &Path, _bytes: &[u8]) -> std::io::Result<PathBuf> {
    Ok(path.to_owned())
}
