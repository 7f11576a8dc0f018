//! cuDNN's backend: descriptors, which are made, filled with attributes and finished.
//!
//! It knows nothing else of this crate: `cargo xtask cudnn` compiles the same file, to make plans
//! for devices that are not there. Functions are looked up here and not called through cudarc,
//! whose type of an answer has no place for a number that a later cuDNN may answer with.

use std::ffi::{CStr, c_char, c_void};

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind,
};
use libloading::Library;

/// A handle or a descriptor of cuDNN, or an address.
pub(crate) type Pointer = *mut c_void;

/// Room for cuDNN's own words on what went wrong.
const WORDS_BYTES: usize = 1024;

/// The functions that descriptors need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    version: unsafe extern "C" fn() -> usize,
    cuda_version: unsafe extern "C" fn() -> usize,
    words: unsafe extern "C" fn(*mut c_char, usize),
    create: unsafe extern "C" fn(Kind, *mut Pointer) -> u32,
    destroy: unsafe extern "C" fn(Pointer) -> u32,
    set: unsafe extern "C" fn(Pointer, Name, Type, i64, *const c_void) -> u32,
    get: unsafe extern "C" fn(Pointer, Name, Type, i64, *mut i64, Pointer) -> u32,
    finish: unsafe extern "C" fn(Pointer) -> u32,
}

impl Backend {
    /// `None` if the library lacks one of them: it is too old.
    pub(crate) fn of(library: &'static Library) -> Option<Self> {
        Some(Self {
            version: function(library, b"cudnnGetVersion\0")?,
            cuda_version: function(library, b"cudnnGetCudartVersion\0")?,
            words: function(library, b"cudnnGetLastErrorString\0")?,
            create: function(library, b"cudnnBackendCreateDescriptor\0")?,
            destroy: function(library, b"cudnnBackendDestroyDescriptor\0")?,
            set: function(library, b"cudnnBackendSetAttribute\0")?,
            get: function(library, b"cudnnBackendGetAttribute\0")?,
            finish: function(library, b"cudnnBackendFinalize\0")?,
        })
    }

    /// As 92800 of 9.28.0.
    pub(crate) fn version(&self) -> usize {
        // SAFETY: the call has no precondition.
        unsafe { (self.version)() }
    }

    /// The CUDA that it was made for, as 12090 of 12.9.
    pub(crate) fn cuda_version(&self) -> usize {
        // SAFETY: the call has no precondition.
        unsafe { (self.cuda_version)() }
    }

    /// What an answer means, with cuDNN's own words.
    pub(crate) fn checked(
        &self,
        status: u32,
        doing: impl FnOnce() -> String,
    ) -> Result<(), Refusal> {
        if status == 0 {
            return Ok(());
        }
        let mut words = [0; WORDS_BYTES];
        // SAFETY: it writes at most as many bytes as there are, the last of them a zero.
        unsafe { (self.words)(words.as_mut_ptr(), WORDS_BYTES) };
        let bytes = words.map(|letter| letter.to_ne_bytes()[0]);
        let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy);
        let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        let text = text.map(|text| first_line(&text)).unwrap_or_default();
        Err(Refusal { doing: doing(), status, text })
    }
}

/// A function of a library that stays loaded.
pub(crate) fn function<F: Copy>(library: &'static Library, name: &[u8]) -> Option<F> {
    // SAFETY: the caller's type is that of NVIDIA's header; the symbol ends with a zero.
    unsafe { library.get::<F>(name) }.ok().map(|symbol| *symbol)
}

/// What cuDNN did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What was being done: the attribute or the step.
    pub(crate) doing: String,
    /// The number of a `cudnnStatus_t`.
    pub(crate) status: u32,
    /// cuDNN's words.
    pub(crate) text: String,
}

impl Refusal {
    /// Whether it says that this cannot be had here, now or later: parameters that it does not take
    /// (2000 to 2999), what it does not support (3000 to 3999), a kernel that its compiler does not
    /// make (4001). All else, such as memory that ran out, may be otherwise the next time.
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self.status, 2000..=3999 | 4001)
    }

    /// Whether memory ran out, on the host or the device.
    pub(crate) fn is_of_memory(&self) -> bool {
        matches!(self.status, 4003 | 4004)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: status {}: {}", self.doing, self.status, self.text)
    }
}

/// A descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor {
    backend: Backend,
    pointer: Pointer,
}

// SAFETY: a descriptor is used by one thread at a time, which need not be the one that made it.
unsafe impl Send for Descriptor {}
// SAFETY: what is shared of it is its address alone.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    pub(crate) fn new(backend: Backend, kind: Kind) -> Result<Self, Refusal> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: it writes one address.
        let status = unsafe { (backend.create)(kind, &raw mut pointer) };
        backend.checked(status, || format!("{kind:?}"))?;
        Ok(Self { backend, pointer })
    }

    pub(crate) fn pointer(&self) -> Pointer {
        self.pointer
    }

    /// Sets an attribute. `T` is what NVIDIA's header says of the type.
    fn set<T>(self, name: Name, of_type: Type, values: &[T]) -> Result<Self, Refusal> {
        let n = i64::try_from(values.len()).expect("an attribute has few values");
        // SAFETY: there are as many values as it is told, of the type that it is told.
        let status =
            unsafe { (self.backend.set)(self.pointer, name, of_type, n, values.as_ptr().cast()) };
        self.backend.checked(status, || format!("{name:?}"))?;
        Ok(self)
    }

    pub(crate) fn integers(self, name: Name, values: &[i64]) -> Result<Self, Refusal> {
        self.set(name, Type::CUDNN_TYPE_INT64, values)
    }

    pub(crate) fn flag(self, name: Name, value: bool) -> Result<Self, Refusal> {
        self.set(name, Type::CUDNN_TYPE_BOOLEAN, &[u8::from(value)])
    }

    pub(crate) fn text(self, name: Name, text: &str) -> Result<Self, Refusal> {
        self.set(name, Type::CUDNN_TYPE_CHAR, text.as_bytes())
    }

    /// A value of one of cuDNN's enumerations, which `of_type` names.
    pub(crate) fn choice<T>(self, name: Name, of_type: Type, value: T) -> Result<Self, Refusal> {
        self.set(name, of_type, &[value])
    }

    pub(crate) fn handle(self, name: Name, handle: Pointer) -> Result<Self, Refusal> {
        self.set(name, Type::CUDNN_TYPE_HANDLE, &[handle])
    }

    pub(crate) fn addresses(self, name: Name, values: &[Pointer]) -> Result<Self, Refusal> {
        self.set(name, Type::CUDNN_TYPE_VOID_PTR, values)
    }

    /// Other descriptors, which are finished, and live as long as this one.
    pub(crate) fn linked(self, name: Name, others: &[&Self]) -> Result<Self, Refusal> {
        let pointers: Vec<_> = others.iter().map(|other| other.pointer).collect();
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &pointers)
    }

    pub(crate) fn finished(self, doing: &'static str) -> Result<Self, Refusal> {
        // SAFETY: the descriptor is alive.
        let status = unsafe { (self.backend.finish)(self.pointer) };
        self.backend.checked(status, || doing.to_owned())?;
        Ok(self)
    }

    /// An integer that cuDNN has found.
    pub(crate) fn integer(&self, name: Name) -> Result<i64, Refusal> {
        let (mut n, mut value) = (0, 0_i64);
        let to = (&raw mut value).cast();
        // SAFETY: it writes one integer at most, and how many there are.
        let status = unsafe {
            (self.backend.get)(self.pointer, name, Type::CUDNN_TYPE_INT64, 1, &raw mut n, to)
        };
        self.backend.checked(status, || format!("{name:?}"))?;
        Ok(value)
    }

    /// Fills descriptors of its results. How many of them it has filled.
    pub(crate) fn results(&self, name: Name, to: &[Self]) -> Result<usize, Refusal> {
        let mut pointers: Vec<_> = to.iter().map(|descriptor| descriptor.pointer).collect();
        let (mut n, n_max) = (0, i64::try_from(to.len()).expect("few results are asked for"));
        let of_type = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: the descriptors are alive, and as many as it is told.
        let status = unsafe {
            let to = pointers.as_mut_ptr().cast();
            (self.backend.get)(self.pointer, name, of_type, n_max, &raw mut n, to)
        };
        self.backend.checked(status, || format!("{name:?}"))?;
        Ok(usize::try_from(n).unwrap_or(0).min(to.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and goes with this.
        unsafe { (self.backend.destroy)(self.pointer) };
    }
}
