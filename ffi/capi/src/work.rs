//! Merging and quantizing.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use forgelm_config::Device;
use forgelm_run::merge;
use forgelm_run::plugins;
use forgelm_run::quantize::{QuantizeRequest, quantize};
use serde_json::{Value, json};

use crate::border::{bytes, call, owned, put, text};
use crate::cancel::forgelm_cancel;
use crate::engine::{forgelm_engine, stop_of};
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::Handle;
use crate::model::device_of;
use crate::options::{Options, wrong};
use crate::train::{Ear, forgelm_event_fn, plan_of};

/// Merges the models of a config; `forgelm.h` has the contract.
///
/// # Safety
/// As `forgelm_train`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_merge(
    engine: *const forgelm_engine,
    yaml: *const c_char,
    yaml_len: usize,
    file_name: *const c_char,
    on_event: forgelm_event_fn,
    user: *mut c_void,
    cancel: *const forgelm_cancel,
    out_result: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let yaml = unsafe { bytes(yaml, yaml_len, "text") }?;
        // SAFETY: by this function's contract.
        let plan = plan_of(yaml, unsafe { text(file_name, "file_name") }?)?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let env = engine.environment(Arc::clone(&stop));
        let mut ear = Ear::new(on_event, user, stop);
        let mut plugins = plugins::load(&plan, &env)?;
        let merged = merge::merge(&plan, engine.is_offline(), &mut plugins, &env, &mut ear)?;
        let result = json!({
            "success": true,
            "run_id": merged.run_id,
            "config_hash": merged.config_hash,
            "output_dir": merged.output_dir,
            "num_models": merged.n_models,
            "metrics": merged.metrics,
        });
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_result, || owned(&result.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Quantizes a model; `forgelm.h` has the contract.
///
/// # Safety
/// `request` is a text ended by NUL; `engine` is an engine, `cancel` NULL or a flag; each out-pointer
/// is NULL or writable; `on_event` may be called with `user` until this function returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_quantize(
    engine: *const forgelm_engine,
    request: *const c_char,
    on_event: forgelm_event_fn,
    user: *mut c_void,
    cancel: *const forgelm_cancel,
    out_result: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let (request, device) = read(unsafe { text(request, "request") }?, engine.is_offline())?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let env = engine.environment(Arc::clone(&stop));
        let mut ear = Ear::new(on_event, user, stop);
        let mut plugins = plugins::load_default(device, request.threads, &env)?;
        let quantized = quantize(&request, &mut plugins, &env, &mut ear)?;
        let result = json!({
            "success": true,
            "run_id": quantized.run_id,
            "output_dir": quantized.output_dir,
            "model_path": quantized.model,
            "metrics": quantized.metrics,
        });
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_result, || owned(&result.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// `{"model", "method", "output", "revision"?, "options"?: {name: value}, "threads"?, "device"?,
/// "signing_key"?}`, and the device.
fn read(request: &str, offline: bool) -> Result<(QuantizeRequest, Device), Failure> {
    let mut request = Options::parse("request", Some(request))?;
    let needed = |request: &mut Options, key: &str| {
        let found = request.text(key)?;
        found.ok_or_else(|| wrong(&format!("`request.{key}` is missing; expected a text")))
    };
    let options = match request.json("options") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(options)) => options
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect(),
        Some(_) => return Err(wrong("`request.options` is no object")),
    };
    let threads = request.whole("threads", 4096)?.and_then(|n| usize::try_from(n).ok());
    let read = QuantizeRequest {
        model: needed(&mut request, "model")?,
        method: needed(&mut request, "method")?,
        output: needed(&mut request, "output")?.into(),
        revision: request.text("revision")?,
        offline: request.flag("offline")? || offline,
        options,
        threads,
        signing_key: request.path("signing_key")?,
    };
    let device = device_of(request.text("device")?, "request")?;
    request.finish()?;
    Ok((read, device))
}
