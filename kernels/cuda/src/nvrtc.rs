//! Compiles kernels on the user's machine, where no code for its device was made before.
//!
//! NVRTC needs no file: the sources and the one header that they include are in this program. What
//! was compiled is kept in a folder that the caller chose, under the hash of all that it depends
//! on, so that a stale entry cannot be taken for a fresh one.

use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use sha2::{Digest as _, Sha256};

/// A source of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Name of the file without `.cu`; kernels in it begin with it.
    pub(crate) stem: &'static str,
    pub(crate) text: &'static str,
}

macro_rules! sources {
    ($($stem:literal),* $(,)?) => {
        &[$(Source { stem: $stem, text: include_str!(concat!($stem, ".cu")) }),*]
    };
}

/// All kernels: the list of the `.cu` files of this folder.
pub(crate) const SOURCES: &[Source] = sources![
    "adafactor",
    "adamw",
    "adamw_8bit",
    "add",
    "attention",
    "attention_cached",
    "attention_plain",
    "blocks",
    "cast",
    "columns",
    "dropout",
    "embedding",
    "float8",
    "gemm",
    "glu",
    "merge",
    "quantize",
    "rms_norm",
    "rope",
    "routing",
    "rows",
    "sampling",
    "sum_of_squares",
    "token_logprobs",
];

/// What the sources include: names and texts.
const HEADERS: [(&CStr, &str); 3] = [
    (c"attention.cuh", include_str!("../include/attention.cuh")),
    (c"chunk.cuh", include_str!("../include/chunk.cuh")),
    (c"device.cuh", include_str!("../include/device.cuh")),
];

/// Length of a hash, at the start of an entry.
const HASH: usize = 32;

/// NVRTC, with a folder for what it makes.
#[derive(Debug)]
pub(crate) struct Compiler {
    folder: Option<PathBuf>,
}

impl Compiler {
    /// NVRTC must be there: see `libraries`.
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// Machine code for an architecture, or why there is none.
    pub(crate) fn compile(&self, source: &Source, architecture: &str) -> Result<Vec<u8>, String> {
        let options = options(architecture);
        let key = key(source, &options, version());
        let entry = self.folder.as_ref().map(|folder| folder.join(format!("{key}.cubin")));
        if let Some(image) = entry.as_deref().and_then(read_entry) {
            return Ok(image);
        }
        let image = compile(source, &options)?;
        if let Some(entry) = entry {
            // A folder that cannot be written costs time in the next process, and nothing else.
            let _ = write_entry(&entry, &image);
        }
        Ok(image)
    }
}

/// The same as `cargo xtask kernels` uses.
fn options(architecture: &str) -> Vec<CString> {
    let architecture = format!("--gpu-architecture={architecture}");
    [&architecture, "--std=c++17", "-default-device", "--ptxas-options=-v"]
        .into_iter()
        .map(|option| CString::new(option).expect("options have no zero in them"))
        .collect()
}

/// Everything that the result depends on, hashed.
fn key(source: &Source, options: &[CString], version: (i32, i32)) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(source.stem.as_bytes());
    part(source.text.as_bytes());
    for (name, text) in HEADERS {
        part(name.to_bytes());
        part(text.as_bytes());
    }
    for option in options {
        part(option.as_bytes());
    }
    part(format!("NVRTC {}.{}", version.0, version.1).as_bytes());
    let mut text = String::new();
    for byte in hash.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// An entry begins with the hash of what follows: one that is damaged is none.
fn read_entry(entry: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(entry).ok()?;
    let (hash, image) = bytes.split_at_checked(HASH)?;
    (Sha256::digest(image)[..] == *hash).then(|| image.to_vec())
}

/// Another process may write the same entry: each writes a file of its own, and the last name wins.
fn write_entry(entry: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = entry.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&Sha256::digest(image))?;
    file.write_all(image)?;
    file.persist(entry)?;
    Ok(())
}

/// Major and minor version of NVRTC, which must be there.
pub(crate) fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC is there, and writes two numbers.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (major, minor)
}

/// A program of NVRTC, which goes with it.
struct Program(nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was made, and is used no more.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn compile(source: &Source, options: &[CString]) -> Result<Vec<u8>, String> {
    let text = CString::new(source.text).map_err(|_| "its source has a zero in it")?;
    let name = CString::new(format!("{}.cu", source.stem)).map_err(|_| "its name has a zero")?;
    let texts = HEADERS.map(|(_, text)| CString::new(text).expect("headers have no zero in them"));
    let (headers, names) = (texts.each_ref().map(|t| t.as_ptr()), HEADERS.map(|(n, _)| n.as_ptr()));
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all are texts that end with a zero and live until the call returns, as many headers as
    // names of them.
    checked(unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program.0,
            text.as_ptr(),
            name.as_ptr(),
            i32::try_from(names.len()).expect("there are few headers"),
            headers.as_ptr(),
            names.as_ptr(),
        )
    })?;
    let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let n_options = i32::try_from(options.len()).expect("there are few options");
    // SAFETY: the program was made, and as many options as said are texts that end with a zero.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, n_options, options.as_ptr()) };
    checked(compiled).map_err(|error| format!("{error}\n{}", log(&program)))?;
    let mut n = 0;
    // SAFETY: the program was compiled.
    checked(unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut n) })?;
    let mut image = vec![0_u8; n];
    // SAFETY: the image has room for as many bytes as the program has.
    checked(unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    Ok(image)
}

fn checked(result: nvrtcResult) -> Result<(), String> {
    if result == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the answer is a text that is never freed.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(text.to_string_lossy().into_owned())
}

/// What the compiler wrote.
fn log(program: &Program) -> String {
    let mut n = 0;
    // SAFETY: the program was made.
    if unsafe { sys::nvrtcGetProgramLogSize(program.0, &raw mut n) } != nvrtcResult::NVRTC_SUCCESS {
        return String::new();
    }
    let mut text = vec![0_u8; n];
    // SAFETY: the text has room for as many bytes as the log has.
    let read = unsafe { sys::nvrtcGetProgramLog(program.0, text.as_mut_ptr().cast()) };
    if read != nvrtcResult::NVRTC_SUCCESS {
        return String::new();
    }
    String::from_utf8_lossy(&text).trim_end_matches('\0').trim().to_owned()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files in a temporary folder")]
mod tests {
    use super::*;
    use crate::libraries::{Folders, Libraries};

    /// The entry of one folder's file names that end with something.
    fn files(folder: &str, end: &str) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(end)).collect();
        names.sort();
        names
    }

    #[test]
    fn the_lists_are_what_lies_in_the_folders() {
        let sources: Vec<_> = SOURCES.iter().map(|source| format!("{}.cu", source.stem)).collect();
        assert_eq!(sources, files("src", ".cu"));
        let headers = HEADERS.map(|(name, _)| name.to_str().unwrap().to_owned());
        assert_eq!(headers[..], files("include", ".cuh"));
    }

    #[test]
    fn an_entry_is_taken_back_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("a.cubin");
        assert_eq!(read_entry(&entry), None);
        write_entry(&entry, b"code").unwrap();
        assert_eq!(read_entry(&entry).as_deref(), Some(&b"code"[..]));
        write_entry(&entry, b"other code").unwrap();
        assert_eq!(read_entry(&entry).as_deref(), Some(&b"other code"[..]));
        let whole = std::fs::read(&entry).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&entry, &whole[..len]).unwrap();
            assert_eq!(read_entry(&entry), None, "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&entry, changed).unwrap();
            assert_eq!(read_entry(&entry), None, "byte {at}");
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left");
    }

    #[test]
    fn a_key_depends_on_all_that_the_code_depends_on() {
        let source = Source { stem: "add", text: "one" };
        let (sm_80, sm_90) = (options("sm_80"), options("sm_90a"));
        let keys = [
            key(&source, &sm_80, (12, 9)),
            key(&source, &sm_90, (12, 9)),
            key(&source, &sm_80, (12, 8)),
            key(&Source { text: "two", ..source }, &sm_80, (12, 9)),
            key(&Source { stem: "glu", ..source }, &sm_80, (12, 9)),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], key(&source, &sm_80, (12, 9)));
    }

    #[test]
    fn every_source_compiles_and_comes_back_from_the_folder() {
        if !Libraries::find(&Folders::default()).nvrtc.is_there() {
            println!("skipped: NVRTC is not installed");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(Some(folder.path().to_owned()));
        for source in SOURCES {
            let image = compiler.compile(source, "sm_80").unwrap();
            assert_eq!(image[..4], *b"\x7fELF", "{}", source.stem);
        }
        let entries: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(entries.len(), SOURCES.len());
        // what lies there is taken, not made again
        write_entry(&entries[0], b"not code").unwrap();
        let images: Vec<_> =
            SOURCES.iter().map(|s| compiler.compile(s, "sm_80").unwrap()).collect();
        assert_eq!(images.iter().filter(|image| **image == b"not code").count(), 1);

        let broken = Source { stem: "broken", text: "KERNEL(32) void broken() { int x = }" };
        let error = compiler.compile(&broken, "sm_80").unwrap_err();
        assert!(error.contains("broken.cu"), "{error}");
    }
}
