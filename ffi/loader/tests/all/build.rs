//! Libraries made by the tests, and a host that remembers what it was told.

use forgelm_kernels_cpu::Cpu;
use forgelm_loader::{HostServices, Level, Library, Loader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Compiles a source of this crate or of `ffi/examples` into a temporary folder.
pub fn compile(source: &str, defines: &[&str], flags: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let library = dir.path().join("library.so");
    let (compiler, standard) =
        if source.ends_with(".cpp") { ("c++", "-std=c++17") } else { ("cc", "-std=c11") };
    let output = Command::new(compiler)
        .args([standard, "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"])
        .args(["-Werror", "-Wl,-z,defs", "-Wl,-z,nodelete"])
        .args(flags)
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-I")
        .arg(ffi.join("include"))
        .arg(ffi.join(source))
        .arg("-o")
        .arg(&library)
        .args(["-lpthread", "-lm"])
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}; these tests need a C and a C++ compiler"));
    assert!(output.status.success(), "{source}:\n{}", String::from_utf8_lossy(&output.stderr));
    (dir, library)
}

/// The trainer that does one thing wrong.
pub fn misbehaves(defines: &[&str]) -> (TempDir, PathBuf) {
    compile("loader/tests/plugins/misbehaves.c", defines, &[])
}

/// A library that cargo built beside this test.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join(format!("lib{name}.so"))
}

/// What a host was told.
#[derive(Clone, Default)]
pub struct Told {
    pub lines: Arc<Mutex<Vec<(Level, String, String)>>>,
    pub events: Arc<Mutex<Vec<String>>>,
    pub stop: Arc<AtomicBool>,
}

impl Told {
    pub fn loader(&self) -> Loader {
        self.loader_on(2)
    }

    /// A host whose kernels have these threads.
    pub fn loader_on(&self, n_threads: usize) -> Loader {
        Loader::new(self.services(n_threads))
    }

    /// What such a host offers.
    pub fn services(&self, n_threads: usize) -> HostServices {
        let (lines, events) = (Arc::clone(&self.lines), Arc::clone(&self.events));
        let stop = Arc::clone(&self.stop);
        HostServices {
            log: Box::new(move |level, target, message| {
                lines.lock().unwrap().push((level, target.to_owned(), message.to_owned()));
            }),
            progress: Box::new(move |event| events.lock().unwrap().push(event.to_owned())),
            stop: Box::new(move || stop.load(Ordering::Relaxed)),
            kernels: Some(Box::new(move || Arc::new(Cpu::new(n_threads)))),
            device: None,
            serving: None,
            hung: None,
        }
    }
}

#[track_caller]
pub fn load(path: &Path) -> Library {
    let loaded = Told::default().loader().load(path);
    loaded.unwrap_or_else(|error| panic!("{error}")).expect("it is new")
}
