//! Where this library is, for what ships beside it.

use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// The folder of the shared library; of the program, where it is linked statically.
#[must_use]
pub fn library_dir() -> Option<PathBuf> {
    let own: extern "C" fn() -> u32 = crate::version::forgelm_abi_version;
    // SAFETY: all of it is integers and pointers, for which zero is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is of a function of this library, and `info` is writable.
    let is_found = unsafe { libc::dladdr(own as *const c_void, &raw mut info) } != 0;
    if !is_found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of an object that stays loaded, ended by NUL.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    path.canonicalize().ok()?.parent().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_test_is_a_program_of_its_own() {
        let program = std::env::current_exe().unwrap().canonicalize().unwrap();
        assert_eq!(super::library_dir().as_deref(), program.parent());
    }
}
