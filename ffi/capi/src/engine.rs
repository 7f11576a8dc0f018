//! The engine: what a host says once of the world that its calls see.

use forgelm_config::Device;
use forgelm_run::kernels::Kernels;
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use forgelm_run::environment::{Environment, Lookup};
use forgelm_world::{SystemClock, View, environment};
use serde_json::{Value, json};

use crate::border::{call, optional_text, owned, put};
use crate::cancel::forgelm_cancel;
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::{Handle, Kind};
use crate::options::{Options, kind, wrong};
use crate::place::library_dir;

/// What the world is for every call of this engine.
pub struct Engine {
    clock: Arc<SystemClock>,
    view: View,
    operator: Option<String>,
    offline: bool,
    config_dir: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    plugin_path: Vec<PathBuf>,
}

impl Kind for Engine {
    const TAG: u64 = 0x656e_6967_6e65_5f31;
    const NAME: &'static str = "forgelm_engine";
}

/// The handle of the header.
#[expect(non_camel_case_types, reason = "its name in C")]
pub type forgelm_engine = Handle<Engine>;

impl Engine {
    fn new(mut options: Options) -> Result<Self, Failure> {
        let given = options.json("environment");
        let given = given.filter(|given| !given.is_null());
        let is_inherited = !options.flag("ignore_environment")?;
        let engine = Self {
            clock: SystemClock::start(),
            view: View {
                variable: variables(given.as_ref(), is_inherited)?,
                program: options.path("program")?,
                alarm: |_| {},
            },
            operator: options.text("operator")?,
            offline: options.flag("offline")?,
            config_dir: options.path("config_dir")?,
            cache_dir: options.path("cache_dir")?,
            plugin_path: options.paths("plugin_path")?,
        };
        options.finish()?;
        Ok(engine)
    }

    /// The world for one call, with what may stop it.
    pub fn environment(&self, stop: Arc<AtomicBool>) -> Environment {
        let mut env = environment(self.clock.clone(), &self.view);
        env.offline |= self.offline;
        env.program_dir = env.program_dir.or_else(library_dir);
        env.stop = stop;
        env.operator = self.operator.clone().or(env.operator);
        env.config_dir = self.config_dir.clone().unwrap_or(env.config_dir);
        env.cache_dir = self.cache_dir.clone().unwrap_or(env.cache_dir);
        env.plugin_path.extend(self.plugin_path.iter().cloned());
        env
    }

    /// Whether nothing may be fetched.
    pub fn is_offline(&self) -> bool {
        self.offline
    }
}

/// The variables that calls see: those that the host gives (null hides one), then its own.
fn variables(given: Option<&Value>, is_inherited: bool) -> Result<Lookup, Failure> {
    let mut known = BTreeMap::new();
    if let Some(given) = given {
        let Some(given) = given.as_object() else {
            let found = kind(given);
            return Err(wrong(&format!("`options.environment` is {found}; expected an object")));
        };
        for (name, value) in given {
            let value = match value {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => {
                    let found = kind(other);
                    let text = format!("`options.environment.{name}` is {found}; expected a text");
                    return Err(wrong(&text));
                }
            };
            known.insert(name.clone(), value);
        }
    }
    Ok(Arc::new(move |name: &str| match known.get(name) {
        Some(value) => value.clone().filter(|value| !value.is_empty()),
        None if is_inherited => forgelm_world::variable(name),
        None => None,
    }))
}

/// Makes an engine; `forgelm.h` has the contract.
///
/// # Safety
/// `options` is NULL or ended by NUL; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_engine_new(
    options: *const c_char,
    out_engine: *mut *mut forgelm_engine,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        if out_engine.is_null() {
            return Err(Failure::argument("out_engine", "is NULL"));
        }
        // SAFETY: by this function's contract.
        let options = Options::parse("options", unsafe { optional_text(options, "options") }?)?;
        let engine = Engine::new(options)?;
        // SAFETY: writable by this function's contract.
        unsafe { put(out_engine, || Handle::give(engine)) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Frees an engine; NULL is fine.
///
/// # Safety
/// `engine` is NULL or an engine that no call works with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_engine_free(engine: *mut forgelm_engine) {
    Handle::free(engine);
}

/// What this library is and what it found; `forgelm.h` has the contract.
///
/// # Safety
/// `engine` is an engine; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_engine_info(
    engine: *const forgelm_engine,
    out_info: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        let env = engine.environment(Arc::default());
        let kernels = Kernels::new(Device::Auto, None, &env).get()?.ops;
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "abi_version": crate::version::ABI_VERSION,
            "kernels": kernels.name(),
            "n_threads": kernels.n_threads(),
            "offline": env.offline,
            "config_dir": env.config_dir,
            "cache_dir": env.cache_dir,
            "plugin_path": env.plugin_path,
        });
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_info, || owned(&info.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// What may stop a call: the host's, or nothing.
///
/// # Safety
/// `cancel` is NULL or came from `forgelm_cancel_new`.
///
/// # Errors
/// Another kind of handle, or one that was freed.
pub unsafe fn stop_of(cancel: *const forgelm_cancel) -> Result<Arc<AtomicBool>, Failure> {
    if cancel.is_null() {
        return Ok(Arc::default());
    }
    let cancel = Handle::borrow(cancel, "cancel")?;
    Ok(cancel.flag())
}
