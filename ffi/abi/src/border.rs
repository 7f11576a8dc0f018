//! What every kind shares: text, statuses, the error record, the host's table and the entry.

use std::ffi::{CStr, c_char, c_void};

/// First number of every entry: the bytes `FGLMABI1` in the order of this machine's memory.
pub const MAGIC: u64 = 0x3149_4241_4d4c_4746;
/// Raised by a change that old plugins could not survive.
pub const ABI_MAJOR: u32 = 1;
/// Raised when something is appended.
pub const ABI_MINOR: u32 = 0;
/// The symbol of a plugin: a constant [`forgelm_entry`].
pub const ENTRY_SYMBOL: &CStr = c"forgelm_plugin_entry";

/// How a call ended: one of [`status`].
pub type forgelm_status = i32;

/// The statuses. Numbers are only ever added; one that is not known is an internal error.
pub mod status {
    use super::forgelm_status;

    /// Done.
    pub const OK: forgelm_status = 0;
    /// Stopped because the host asked for it.
    pub const CANCELLED: forgelm_status = 1;
    /// An option or an argument cannot be used.
    pub const INVALID_ARGUMENT: forgelm_status = 3;
    /// Others gave no sign before the deadline.
    pub const DEADLINE: forgelm_status = 4;
    /// Memory was refused.
    pub const OUT_OF_MEMORY: forgelm_status = 8;
    /// The other side lacks what this needs.
    pub const UNIMPLEMENTED: forgelm_status = 12;
    /// A bug, or something that has no number of its own.
    pub const INTERNAL: forgelm_status = 13;
    /// A panic or an exception was caught. The instance may only be destroyed.
    pub const PANIC: forgelm_status = 100;
}

/// Importance of a log line.
pub mod log_level {
    /// For who looks for a fault.
    pub const DEBUG: u32 = 0;
    /// A fact worth a line.
    pub const INFO: u32 = 1;
    /// Something that the user may want to change.
    pub const WARNING: u32 = 2;
    /// Something failed.
    pub const ERROR: u32 = 3;
}

/// Borrowed UTF-8, not ended by NUL; valid for the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_str {
    /// First byte; may be null when `len` is 0.
    pub ptr: *const c_char,
    /// Bytes.
    pub len: usize,
}

impl forgelm_str {
    /// A view of a text.
    #[must_use]
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr().cast(), len: text.len() }
    }
}

/// Bytes of a message in [`forgelm_plugin_error`].
pub const MESSAGE_BYTES: usize = 496;

/// The caller's record of what went wrong: the callee fills it, and nobody frees it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_plugin_error {
    /// Bytes of this struct, as the caller knows it.
    pub struct_size: u32,
    /// The status.
    pub code: forgelm_status,
    /// Bytes of `message` in use.
    pub message_len: u32,
    /// Zero.
    pub reserved: u32,
    /// UTF-8.
    pub message: [c_char; MESSAGE_BYTES],
}

impl forgelm_plugin_error {
    /// A record without an error, for a call.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            #[expect(clippy::cast_possible_truncation, reason = "512 bytes")]
            struct_size: size_of::<Self>() as u32,
            code: status::OK,
            message_len: 0,
            reserved: 0,
            message: [0; MESSAGE_BYTES],
        }
    }

    /// Makes it a record without an error again; what the message was stays behind its length.
    pub const fn begin(&mut self) {
        #[expect(clippy::cast_possible_truncation, reason = "512 bytes")]
        let struct_size = size_of::<Self>() as u32;
        (self.struct_size, self.code, self.message_len) = (struct_size, status::OK, 0);
    }

    /// What the callee wrote, mended where it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> String {
        let len = (self.message_len as usize).min(MESSAGE_BYTES);
        let bytes: Vec<u8> = self.message[..len].iter().map(|&c| c.to_ne_bytes()[0]).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Default for forgelm_plugin_error {
    fn default() -> Self {
        Self::new()
    }
}

/// What the host offers. It outlives every instance that was created with it.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_host {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// The host's [`ABI_MAJOR`].
    pub abi_major: u32,
    /// The host's [`ABI_MINOR`].
    pub abi_minor: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub host_data: *mut c_void,
    /// A table of functions by its id, or null.
    pub get_extension:
        Option<unsafe extern "C" fn(host: *const forgelm_host, id: *const c_char) -> *const c_void>,
    /// Says something.
    pub log: Option<
        unsafe extern "C" fn(
            host: *const forgelm_host,
            level: u32,
            target: forgelm_str,
            message: forgelm_str,
        ),
    >,
    /// Not 0: the work should stop.
    pub is_cancelled: Option<unsafe extern "C" fn(host: *const forgelm_host) -> u32>,
    /// Tells how far the work is; not 0: it should stop.
    pub progress:
        Option<unsafe extern "C" fn(host: *const forgelm_host, event_json: forgelm_str) -> u32>,
}

/// What a plugin exports under [`ENTRY_SYMBOL`]. Its fields up to `layout_hash` never change.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_entry {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`ABI_MAJOR`] that it was built for.
    pub abi_major: u32,
    /// [`ABI_MINOR`] that it was built for.
    pub abi_minor: u32,
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// [`crate::LAYOUT_HASH`] that it was built for.
    pub layout_hash: u64,
    /// Name of the library, ended by NUL.
    pub name: *const c_char,
    /// Version of the library, ended by NUL.
    pub version: *const c_char,
    /// Called once, before anything else.
    pub init: Option<
        unsafe extern "C" fn(
            host: *const forgelm_host,
            plugin_dir: forgelm_str,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Called at most once, when the host is done with it.
    pub deinit: Option<unsafe extern "C" fn()>,
    /// The factory of a kind by its id, or null.
    pub get_factory: Option<unsafe extern "C" fn(factory_id: *const c_char) -> *const c_void>,
}
