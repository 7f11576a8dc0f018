//! Finds NVIDIA's libraries at run time: nothing is linked, and nothing need be installed.
//!
//! cudarc opens a library by its bare name when it is first called, and panics where there is none.
//! So each library is looked for here first. What lies in a folder is opened by its full path: the
//! loader then answers cudarc's later question for the bare name with the copy that is loaded
//! already. Reads no environment: the caller knows the folders.

use std::path::{Path, PathBuf};

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use crate::error::DriverFault;

/// Folders to look in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folders {
    /// Before all others: what the user named.
    pub first: Vec<PathBuf>,
    /// After the loader's own search: `CUDA_HOME`, `site-packages` of a Python environment. Each
    /// is looked at itself, in its `lib64` and `lib`, and in the folders of NVIDIA's wheels.
    pub last: Vec<PathBuf>,
}

/// Where a library was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// In a folder.
    At(PathBuf),
    /// By the loader.
    ByLoader,
    /// Nowhere.
    Missing,
}

impl Found {
    /// Whether it may be called.
    #[must_use]
    pub fn is_there(&self) -> bool {
        *self != Self::Missing
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(file) => write!(f, "`{}`", file.display()),
            Self::ByLoader => f.write_str("found by the system's loader"),
            Self::Missing => f.write_str("not found"),
        }
    }
}

/// NVIDIA's libraries, as far as this machine has them. Once found they stay loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// The driver: `libcuda`.
    pub driver: Found,
    /// The compiler for kernels: `libnvrtc`.
    pub nvrtc: Found,
    /// Products of matrices: `libcublasLt`.
    pub cublaslt: Found,
    /// Attention: `libcudnn`.
    pub cudnn: Found,
    /// Bytes between devices: `libnccl`.
    pub nccl: Found,
}

/// What there is to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Devices.
    Usable {
        /// How many.
        n_devices: usize,
        /// The newest CUDA that the driver knows, as 12080 for 12.8.
        driver_version: u32,
    },
    /// No driver is installed.
    NoDriver,
    /// The driver finds no device.
    NoDevice,
    /// The driver cannot be started.
    Failed(DriverFault),
}

impl std::fmt::Display for Availability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usable { n_devices, driver_version } => {
                let plural = if *n_devices == 1 { "" } else { "s" };
                let (major, minor) = (driver_version / 1000, driver_version % 1000 / 10);
                write!(f, "{n_devices} CUDA device{plural}; the driver knows CUDA {major}.{minor}")
            }
            Self::NoDriver => f.write_str("no NVIDIA driver was found on this machine (`libcuda`)"),
            Self::NoDevice => f.write_str("the NVIDIA driver finds no device that it may use"),
            Self::Failed(fault) => write!(f, "the NVIDIA driver cannot be started: {fault}"),
        }
    }
}

/// Names of a library's file, the best first. Versions are those that cudarc asks the loader for:
/// a file of another version would be loaded and never be used.
pub(crate) struct Names(pub(crate) &'static [&'static str]);

const DRIVER: Names = Names(&["libcuda.so.1", "libcuda.so", "nvcuda.dll"]);
const NVRTC: Names = Names(&["libnvrtc.so.12", "libnvrtc.so", "nvrtc64_120_0.dll"]);
const CUBLASLT: Names = Names(&["libcublasLt.so.12", "libcublasLt.so", "cublasLt64_12.dll"]);
const CUDNN: Names = Names(&["libcudnn.so.9", "libcudnn.so", "cudnn64_9.dll"]);
/// NVIDIA's packages have the first name alone. Which versions may be used is not in the name.
pub(crate) const NCCL: Names = Names(&["libnccl.so.2", "libnccl.so"]);

impl Libraries {
    /// Looks for all of them.
    #[must_use]
    pub fn find(folders: &Folders) -> Self {
        let last: Vec<PathBuf> = folders.last.iter().flat_map(|root| below(root)).collect();
        // SAFETY of the five probes: they open a library by its name and look at nothing in it.
        // What its initializers do is NVIDIA's to answer for, as with every shared library.
        let find = |names, probe: unsafe fn() -> bool| find(&names, &folders.first, &last, probe);
        Self {
            driver: find(DRIVER, cudarc::driver::sys::is_culib_present),
            nvrtc: find(NVRTC, cudarc::nvrtc::sys::is_culib_present),
            cublaslt: find(CUBLASLT, cudarc::cublaslt::sys::is_culib_present),
            cudnn: find(CUDNN, cudarc::cudnn::sys::is_culib_present),
            nccl: find(NCCL, is_nccl_present),
        }
    }

    /// Major and minor version of NVRTC; `None` without it.
    #[must_use]
    pub fn nvrtc_version(&self) -> Option<(i32, i32)> {
        self.nvrtc.is_there().then(crate::nvrtc::version)
    }

    /// Version of cuDNN, as 90700 of 9.7.0; `None` without it.
    #[must_use]
    pub fn cudnn_version(&self) -> Option<usize> {
        // SAFETY: the library is there, and the call has no precondition.
        self.cudnn.is_there().then(|| unsafe { cudarc::cudnn::sys::cudnnGetVersion() })
    }

    /// What there is to work on. Never panics.
    #[must_use]
    pub fn availability(&self) -> Availability {
        if !self.driver.is_there() {
            return Availability::NoDriver;
        }
        let asked = result::init().and_then(|()| result::device::get_count());
        match asked {
            Ok(n_devices) if n_devices > 0 => Availability::Usable {
                n_devices: n_devices.unsigned_abs() as usize,
                driver_version: driver_version(),
            },
            Ok(_) => Availability::NoDevice,
            Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => Availability::NoDevice,
            Err(error) => Availability::Failed(error.into()),
        }
    }
}

/// The newest CUDA that the driver knows; 0 if it does not say. Only after [`result::init`].
pub(crate) fn driver_version() -> u32 {
    let mut version = 0;
    // SAFETY: the driver is there, and writes one number.
    let answer = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    if answer == CUresult::CUDA_SUCCESS { version.unsigned_abs() } else { 0 }
}

/// A root, what a toolkit has in it, and what NVIDIA's wheels put in it.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_owned(), root.join("lib64"), root.join("lib")];
    if let Ok(packages) = std::fs::read_dir(root.join("nvidia")) {
        let mut packages: Vec<PathBuf> = packages.flatten().map(|entry| entry.path()).collect();
        packages.sort();
        folders.extend(packages.iter().map(|package| package.join("lib")));
        folders.extend(packages.iter().map(|package| package.join("bin")));
    }
    folders
}

fn find(names: &Names, first: &[PathBuf], last: &[PathBuf], probe: unsafe fn() -> bool) -> Found {
    let in_folders = |folders: &[PathBuf]| {
        let files = folders.iter().flat_map(|f| names.0.iter().map(move |name| f.join(name)));
        files.into_iter().find(|file| file.is_file() && load(file))
    };
    // SAFETY: see `Libraries::find`.
    let is_there = || unsafe { probe() };
    if let Some(file) = in_folders(first)
        && is_there()
    {
        return Found::At(file);
    }
    if is_there() {
        return Found::ByLoader;
    }
    match in_folders(last) {
        Some(file) if is_there() => Found::At(file),
        _ => Found::Missing,
    }
}

/// Whether the loader finds NCCL by one of its names.
unsafe fn is_nccl_present() -> bool {
    NCCL.0.iter().any(|name| load(Path::new(name)))
}

/// Opens a library for good: what was called in it must not go away. `false` if it is none.
#[cfg(unix)]
fn load(file: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // Global, because cuDNN's parts look for each other's symbols.
    // SAFETY: as in `Libraries::find`.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).is_ok()
}

/// Opens a library for good: what was called in it must not go away. `false` if it is none.
#[cfg(not(unix))]
fn load(file: &Path) -> bool {
    // SAFETY: as in `Libraries::find`.
    let library = unsafe { libloading::Library::new(file) };
    library.map(std::mem::forget).is_ok()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files in a temporary folder")]
mod tests {
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::device::{Device, DeviceOptions};
    use crate::error::CudaError;

    /// Runs one test of this file in a process of its own, since a library that was found once stays
    /// found. What it printed; it must not have panicked.
    fn child(name: &str) -> String {
        let program = std::env::current_exe().unwrap();
        let name = format!("libraries::tests::{name}");
        let output = std::process::Command::new(program)
            .args(["--ignored", "--exact", &name, "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
        text
    }

    #[test]
    fn what_is_missing_is_told_and_does_no_harm() {
        let child = |name| println!("{}", child(name));
        child("child_without_folders");
        child("child_with_files_that_are_no_libraries");
        if let Some(reason) = emulator::unavailable() {
            println!("skipped: {reason}");
            return;
        }
        child("child_without_a_device");
        child("child_with_wheels");
    }

    /// Without a driver everything says so.
    fn expect_no_driver(libraries: &Libraries) {
        if libraries.driver.is_there() {
            println!("skipped: this machine has a driver");
            return;
        }
        assert_eq!(libraries.availability(), Availability::NoDriver);
        let sentence = "no NVIDIA driver was found on this machine (`libcuda`)";
        assert_eq!(libraries.availability().to_string(), sentence);
        let error = Device::open(0, libraries, DeviceOptions::default()).unwrap_err();
        assert!(matches!(error, CudaError::NotUsable(Availability::NoDriver)));
        assert_eq!(error.to_string(), sentence);
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_without_folders() {
        expect_no_driver(&Libraries::find(&Folders::default()));
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_with_files_that_are_no_libraries() {
        let folder = tempfile::tempdir().unwrap();
        for Names(names) in [DRIVER, NVRTC, CUBLASLT, CUDNN, NCCL] {
            std::fs::write(folder.path().join(names[0]), "no library").unwrap();
        }
        let path = folder.path().to_owned();
        let gone = path.join("gone");
        let both = Folders { first: vec![path.clone(), gone.clone()], last: vec![path, gone] };
        let libraries = Libraries::find(&both);
        expect_no_driver(&libraries);
        let Libraries { driver, nvrtc, cublaslt, cudnn, nccl } = &libraries;
        for found in [driver, nvrtc, cublaslt, cudnn, nccl] {
            assert!(!matches!(found, Found::At(_)), "{found:?}");
        }
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_without_a_device() {
        emulator::set_device(&emulator::Device { n_devices: 0, ..Default::default() });
        let libraries = crate::emulated::libraries();
        assert_eq!(libraries.driver, Found::At(emulator::library_folder().join("libcuda.so.1")));
        assert_eq!(libraries.availability(), Availability::NoDevice);
        let sentence = "the NVIDIA driver finds no device that it may use";
        assert_eq!(libraries.availability().to_string(), sentence);
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_with_wheels() {
        let site_packages = tempfile::tempdir().unwrap();
        let folder = site_packages.path().join("nvidia/cublas/lib");
        std::fs::create_dir_all(&folder).unwrap();
        let file = "libcublasLt.so.12";
        std::fs::copy(emulator::library_folder().join(file), folder.join(file)).unwrap();
        // its own driver lies beside it
        let driver = emulator::library_folder().join("libcuda.so.1");
        std::fs::copy(driver, folder.join("libcuda.so.1")).unwrap();
        let last = vec![site_packages.path().to_owned()];
        let libraries = Libraries::find(&Folders { first: Vec::new(), last });
        if libraries.cublaslt == Found::ByLoader {
            println!("skipped: this machine has cuBLASLt");
            return;
        }
        assert_eq!(libraries.cublaslt, Found::At(folder.join(file)));
    }

    #[test]
    fn availability_is_one_sentence() {
        let one = Availability::Usable { n_devices: 1, driver_version: 12_080 };
        assert_eq!(one.to_string(), "1 CUDA device; the driver knows CUDA 12.8");
        let two = Availability::Usable { n_devices: 2, driver_version: 13_000 };
        assert_eq!(two.to_string(), "2 CUDA devices; the driver knows CUDA 13.0");
        let fault = DriverFault { code: 803, name: "CUDA_ERROR_X".into(), text: "a reason".into() };
        let expected = "the NVIDIA driver cannot be started: CUDA_ERROR_X (803): a reason";
        assert_eq!(Availability::Failed(fault).to_string(), expected);
    }
}
