//! A shared library as plugins: opened, checked, and wrapped in the traits of `ffi/sdk`.
//!
//! The order of checks is fixed, and each failure names the file, what was found, what was expected
//! and what to do: the file is a whole library for this processor; it opens; it has the entry; magic,
//! ABI version, struct sizes, layout hash and the layouts that it tells itself are right; no function
//! is null; its descriptors make sense. Nothing of a plugin is called before, besides the library's own constructors, which the
//! system runs when it opens a library.
//!
//! The bytes that were hashed are the bytes that run: they are opened from a sealed memory file. A
//! library is never unloaded, because its threads and its thread-local destructors may outlive any
//! instance. The floating-point mode is put back after opening and after every call.
//!
//! It refuses to know which methods exist, and who calls them. Start reading at [`Loader`].
#![expect(unsafe_code, reason = "calls foreign functions: the host's side of the plugin border")]

mod border;
mod collective;
pub mod conformance;
mod device;
mod elf;
mod entry;
mod error;
mod evaluator;
mod factory;
mod float_mode;
mod host;
mod kernels;
mod merge_method;
mod quantizer;
mod reward;
mod rng;
mod sealed;
pub mod search;
mod service;
mod trainer;
mod watch;
mod witness;
pub mod worker;

pub use error::{LibraryError, Problem};
pub use forgelm_sdk::host::Level;
pub use host::{HostServices, Log, MakeDevice, MakeKernels};
pub use sealed::LibraryFile;
pub use watch::Hung;
pub use witness::{Difference, Place};
pub use worker::{InWorker, WorkerProgram};

use conformance::OnDevice;
use float_mode::FloatMode;
use forgelm_plugin::{Offers, Origin};
use host::Host;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens libraries for one host.
#[derive(Debug)]
pub struct Loader {
    host: &'static Host,
    /// What was loaded, by SHA-256.
    loaded: BTreeMap<String, PathBuf>,
}

/// A library that was opened.
#[derive(Debug)]
pub struct Library {
    /// Name, version, file and digest.
    pub origin: Arc<Origin>,
    /// The ABI that it was built for, as `1.0`.
    pub abi: String,
    /// What it offers.
    pub offers: Offers,
    /// What the user may want to know, one line each.
    pub notes: Vec<String>,
    /// The process that it is in, where that is not this one.
    pub worker: Option<InWorker>,
}

impl Loader {
    /// A loader whose libraries see this host. Its tables, one for each library, stay in memory for
    /// ever, since a library may keep its own.
    #[must_use]
    pub fn new(services: HostServices) -> Self {
        Self { host: Host::leak(services), loaded: BTreeMap::new() }
    }

    /// Opens and checks a library; `None` if the same bytes were loaded before.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn load(&mut self, path: &Path) -> Result<Option<Library>, LibraryError> {
        self.open(&LibraryFile::read(path)?)
    }

    /// As [`Loader::load`], of a library that was read before.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn open(&mut self, file: &LibraryFile) -> Result<Option<Library>, LibraryError> {
        let LibraryFile { path, bytes, sha256, signature } = file;
        let wrong = |problem| LibraryError { path: path.clone(), problem };
        elf::check(bytes).map_err(wrong)?;
        if self.loaded.contains_key(sha256) {
            return Ok(None);
        }
        let mode = FloatMode::keep();
        let library = sealed::open(path, bytes).map_err(wrong)?;
        let mut notes = Vec::new();
        if mode.restore() {
            notes.push(format!(
                "{}: opening it changed the floating-point mode, which was put back; was it built \
                 with -ffast-math?",
                path.display()
            ));
        }
        let entry = entry::Entry::of(library).map_err(wrong)?;
        let origin = Arc::new(Origin {
            library: entry.name.clone(),
            version: entry.version.clone(),
            path: path.clone(),
            sha256: sha256.clone(),
            is_isolated: false,
            signature: signature.clone(),
        });
        let offers = entry.offers(self.host.leak_for_library(), path, &origin).map_err(wrong)?;
        self.loaded.insert(sha256.clone(), path.clone());
        Ok(Some(Library { origin, abi: entry.abi, offers, notes, worker: None }))
    }

    /// Opens and checks a library in a process of its own, which reads it again and refuses other bytes
    /// than these; `None` if the same bytes were loaded before.
    ///
    /// # Errors
    /// The first check that fails, or if there is no such process.
    pub fn open_in_worker(
        &mut self,
        file: &LibraryFile,
        program: &WorkerProgram,
    ) -> Result<Option<Library>, LibraryError> {
        if self.loaded.contains_key(&file.sha256) {
            return Ok(None);
        }
        let library = worker::load(file, program, Arc::clone(self.host.services()))?;
        self.loaded.insert(file.sha256.clone(), file.path.clone());
        Ok(Some(library))
    }

    /// Tries what a library does with tensors of a device, in a process of its own that has one.
    ///
    /// # Errors
    /// If the library cannot be opened there, or there is no such process.
    pub fn try_on_device(
        &self,
        file: &LibraryFile,
        program: &WorkerProgram,
    ) -> Result<OnDevice, LibraryError> {
        worker::try_on_device(file, program, Arc::clone(self.host.services()))
    }
}
