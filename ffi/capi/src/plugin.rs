//! Plugins that calls would find.

use std::ffi::c_char;
use std::sync::Arc;

use forgelm_run::plugins;
use serde_json::json;

use crate::border::{call, owned, put};
use crate::engine::forgelm_engine;
use crate::error::{Status, forgelm_error};
use crate::handle::Handle;

/// Lists plugins; `forgelm.h` has the contract.
///
/// # Safety
/// `engine` is an engine; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_plugin_list(
    engine: *const forgelm_engine,
    out_list: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        let (found, broken) = plugins::list(None, &[], &engine.environment(Arc::default()))?;
        let libraries: Vec<_> =
            found.libraries().iter().map(plugins::LibraryRecord::to_json).collect();
        let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
        let list = json!({"libraries": libraries, "broken": broken});
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_list, || owned(&list.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}
