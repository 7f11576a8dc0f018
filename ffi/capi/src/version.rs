//! Which library this is.

use std::ffi::{CStr, c_char};

/// `FORGELM_ABI_VERSION` of the header.
pub const ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// The version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn forgelm_version() -> *const c_char {
    VERSION.as_ptr()
}

/// `FORGELM_ABI_VERSION` of the library.
#[unsafe(no_mangle)]
pub extern "C" fn forgelm_abi_version() -> u32 {
    ABI_VERSION
}
