//! `forgelm.collective/1`: ways between the processes of a run.

use crate::{forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str};
use std::ffi::{CStr, c_char, c_void};

/// Id of the factory of collectives.
pub const COLLECTIVE_FACTORY: &CStr = c"forgelm.collective/1";

/// One collective of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_collective_descriptor {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Its name in a config.
    pub name: *const c_char,
    /// One line for a person.
    pub summary: *const c_char,
    /// Where it comes from.
    pub source: *const c_char,
    /// Words `key:value`, ended by null; may be null itself.
    pub features: *const *const c_char,
}

/// An instance: one process among those that a launcher started, or among a part of them.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_collective {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The plugin's own.
    pub plugin_data: *mut c_void,
    /// Leaves the others.
    pub destroy: Option<unsafe extern "C" fn(collective: *const forgelm_collective)>,
    /// This process among them, below size.
    pub rank: Option<unsafe extern "C" fn(collective: *const forgelm_collective) -> u32>,
    /// Number of processes, p.
    pub size: Option<unsafe extern "C" fn(collective: *const forgelm_collective) -> u32>,
    /// The library that carries the bytes, with its version.
    pub library:
        Option<unsafe extern "C" fn(collective: *const forgelm_collective) -> *const c_char>,
    /// Each process gives each other one a part of its own.
    pub all_to_all: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            sent: *const c_void,
            sent_bytes: *const usize,
            received: *mut c_void,
            received_bytes: *const usize,
            deadline_ms: u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Every process gets what each one gives.
    pub all_gather: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            own: *const c_void,
            all: *mut c_void,
            n_bytes: *const usize,
            deadline_ms: u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Every process gets what one of them has.
    pub broadcast: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            bytes: *mut c_void,
            n_bytes: usize,
            root: u32,
            deadline_ms: u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Waits until every process has come here.
    pub barrier: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            deadline_ms: u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Those that give the same color, as an instance of their own.
    pub split: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            color: u32,
            deadline_ms: u64,
            out: *mut *const forgelm_collective,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Ends every process of the run.
    pub abort: Option<unsafe extern "C" fn(collective: *const forgelm_collective, exit_code: i32)>,
    /// A table of functions by its id, or null.
    pub get_extension: Option<
        unsafe extern "C" fn(
            collective: *const forgelm_collective,
            id: *const c_char,
        ) -> *const c_void,
    >,
}

/// The collectives of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_collective_factory {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of collectives.
    pub count: Option<unsafe extern "C" fn(factory: *const forgelm_collective_factory) -> u32>,
    /// One of them.
    pub descriptor: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_collective_factory,
            index: u32,
        ) -> *const forgelm_collective_descriptor,
    >,
    /// Joins the processes that a launcher started.
    pub create: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_collective_factory,
            host: *const forgelm_host,
            index: u32,
            options_json: forgelm_str,
            out: *mut *const forgelm_collective,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
