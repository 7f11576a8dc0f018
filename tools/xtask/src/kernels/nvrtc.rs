//! NVRTC, opened at run time: sources in memory to machine code in memory.
#![expect(unsafe_code, reason = "the library has a C interface")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

/// What is compiled: names and texts, nothing of the folder that they came from.
pub(super) struct Program<'a> {
    pub(super) name: String,
    pub(super) source: &'a str,
    pub(super) headers: &'a [(String, String)],
}

/// What came out.
#[derive(Clone)]
pub(super) struct Compiled {
    /// A cubin, or the text of PTX for a virtual architecture.
    pub(super) image: Vec<u8>,
    /// What the compilers said; registers and spills are in it.
    pub(super) log: String,
}

type Handle = *mut c_void;
type GetSize = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;

/// The library; it may be used by several threads at a time.
pub(super) struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Handle) -> c_int,
    log: (GetSize, GetBytes),
    cubin: (GetSize, GetBytes),
    ptx: (GetSize, GetBytes),
    /// Keeps the functions above where they are.
    _library: Library,
}

impl Nvrtc {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: NVRTC's initializers do nothing but prepare the library.
        let library = unsafe { Library::new(path) }
            .map_err(|error| format!("{}: cannot be opened: {error}", path.display()))?;
        Ok(Self {
            version: function(&library, "nvrtcVersion")?,
            create: function(&library, "nvrtcCreateProgram")?,
            compile: function(&library, "nvrtcCompileProgram")?,
            destroy: function(&library, "nvrtcDestroyProgram")?,
            log: (
                function(&library, "nvrtcGetProgramLogSize")?,
                function(&library, "nvrtcGetProgramLog")?,
            ),
            cubin: (function(&library, "nvrtcGetCUBINSize")?, function(&library, "nvrtcGetCUBIN")?),
            ptx: (function(&library, "nvrtcGetPTXSize")?, function(&library, "nvrtcGetPTX")?),
            _library: library,
        })
    }

    /// Major and minor number, as `12.9`.
    pub(super) fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both addresses are of numbers that live here.
        unsafe { (self.version)(&raw mut major, &raw mut minor) };
        format!("{major}.{minor}")
    }

    /// PTX if `architecture` is virtual (`compute_80`), else a cubin.
    pub(super) fn compile(
        &self,
        program: &Program<'_>,
        architecture: &str,
        options: &[&str],
    ) -> Result<Compiled, String> {
        let name = c_string(&program.name)?;
        let source = c_string(program.source)?;
        let mut texts = Vec::new();
        let mut names = Vec::new();
        for (header, text) in program.headers {
            names.push(c_string(header)?);
            texts.push(c_string(text)?);
        }
        let mut all_options = vec![c_string(&format!("--gpu-architecture={architecture}"))?];
        for option in options {
            all_options.push(c_string(option)?);
        }
        let (names, texts, all_options) =
            (pointers(&names), pointers(&texts), pointers(&all_options));
        let n_headers = c_int::try_from(names.len()).map_err(|e| e.to_string())?;
        let n_options = c_int::try_from(all_options.len()).map_err(|e| e.to_string())?;

        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: all texts end with a zero byte and live until the end of this function.
        let code = unsafe {
            (self.create)(
                &raw mut handle,
                source.as_ptr(),
                name.as_ptr(),
                n_headers,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if code != 0 {
            return Err(format!("{}: NVRTC makes no program of it ({code})", program.name));
        }
        // SAFETY: the handle was just created; the options live until the end of this function.
        let code = unsafe { (self.compile)(handle, n_options, all_options.as_ptr()) };
        let log = text(&read(handle, self.log));
        let is_virtual = architecture.starts_with("compute_");
        let image = read(handle, if is_virtual { self.ptx } else { self.cubin });
        // SAFETY: the handle is destroyed once, and not used afterwards.
        unsafe { (self.destroy)(&raw mut handle) };
        if code != 0 {
            return Err(format!("{} for {architecture}:\n{log}", program.name));
        }
        // PTX comes with the zero of a C string
        let image = if is_virtual { text(&image).into_bytes() } else { image };
        Ok(Compiled { image, log })
    }
}

fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the types of the fields of `Nvrtc` are those of nvrtc.h.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|error| format!("NVRTC lacks `{name}`: {error}"))
}

fn read(handle: Handle, (size, fill): (GetSize, GetBytes)) -> Vec<u8> {
    let mut n_bytes = 0;
    // SAFETY: the handle is alive; the size is written to a number that lives here.
    if unsafe { size(handle, &raw mut n_bytes) } != 0 {
        return Vec::new();
    }
    let mut bytes = vec![0_u8; n_bytes];
    // SAFETY: it writes as many bytes as it said.
    unsafe { fill(handle, bytes.as_mut_ptr().cast()) };
    bytes
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a source has a zero byte".to_owned())
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}
