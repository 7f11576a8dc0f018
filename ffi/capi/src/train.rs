//! Plans and runs, with their events.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forgelm_config::load_bytes;
use forgelm_run::error::RunError;
use forgelm_run::event::{Event, Observer};
use forgelm_run::plan::Plan;
use forgelm_run::resume::Resume;
use forgelm_run::training::{Request, train};
use forgelm_run::{fit_check, plugins};
use serde_json::json;

use crate::border::{bytes, call, optional_text, owned, put, text};
use crate::cancel::forgelm_cancel;
use crate::engine::{forgelm_engine, stop_of};
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::{Handle, User};
use crate::options::Options;

/// An event, as the header has it.
#[derive(Debug)]
#[repr(C)]
pub struct forgelm_event {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// Its name.
    pub name: *const c_char,
    /// The event as JSON.
    pub json: *const c_char,
    /// The step of `step`, `evaluation` and `checkpoint`; else the last one.
    pub step: u64,
    /// Steps of the run, once it started.
    pub n_steps: u64,
    /// Loss of the last step; NaN before the first.
    pub loss: f64,
}

/// A host's ear.
#[expect(non_camel_case_types, reason = "its name in C")]
pub type forgelm_event_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, event: *const forgelm_event) -> i32>;

/// Passes events to a host, and its wish to stop back.
pub struct Ear {
    listen: forgelm_event_fn,
    user: User,
    stop: Arc<AtomicBool>,
    step: u64,
    n_steps: u64,
    loss: f64,
}

impl Ear {
    /// An ear that may be none.
    pub fn new(listen: forgelm_event_fn, user: *mut c_void, stop: Arc<AtomicBool>) -> Self {
        Self { listen, user: User(user), stop, step: 0, n_steps: 0, loss: f64::NAN }
    }
}

impl Observer for Ear {
    fn observe(&mut self, event: &Event) {
        let Some(listen) = self.listen else { return };
        match event {
            Event::Started(started) => {
                (self.step, self.n_steps) = (started.n_steps_done, started.n_steps);
            }
            Event::Step(step) => (self.step, self.loss) = (step.step, step.loss),
            Event::Detail(_)
            | Event::Notice(_)
            | Event::Warning(_)
            | Event::Fetched { .. }
            | Event::ModelLoaded(_)
            | Event::DataReady(_)
            | Event::Sample(_)
            | Event::Reference(_)
            | Event::Evaluation(_)
            | Event::Checkpoint(_) => {}
        }
        let c = |text: String| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let (name, json) = (c(event.name().to_owned()), c(event.to_json().to_string()));
        let event = forgelm_event {
            struct_size: size_of::<forgelm_event>(),
            name: name.as_ptr(),
            json: json.as_ptr(),
            step: self.step,
            n_steps: self.n_steps,
            loss: self.loss,
        };
        // SAFETY: the host passed this function for this call with this pointer, and the event lives
        // as long as the call.
        if unsafe { listen(self.user.0, &raw const event) } != 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// The plan of a config's text.
///
/// # Errors
/// Every problem of the config.
pub fn plan_of(yaml: &[u8], file: &str) -> Result<Plan, RunError> {
    let loaded = load_bytes(yaml, file).map_err(RunError::Config)?;
    Plan::of_loaded(loaded, file)
}

/// What a run would do; `forgelm.h` has the contract.
///
/// # Safety
/// `yaml` points to `yaml_len` readable bytes, `file_name` to a text ended by NUL; `engine` is an
/// engine; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_plan(
    engine: *const forgelm_engine,
    yaml: *const c_char,
    yaml_len: usize,
    file_name: *const c_char,
    out_plan: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let yaml = unsafe { bytes(yaml, yaml_len, "text") }?;
        // SAFETY: by this function's contract.
        let plan = plan_of(yaml, unsafe { text(file_name, "file_name") }?)?;
        let env = engine.environment(Arc::default());
        let mut document = plan.to_json();
        let plugins = plugins::load(&plan, &env)?;
        document["fit"] = fit_check::fit_check(&plan, &plugins, &env, &mut Quiet)?.to_json();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_plan, || owned(&document.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// An observer that says nothing.
pub struct Quiet;

impl Observer for Quiet {
    fn observe(&mut self, _: &Event) {}
}

/// Runs a config to its end; `forgelm.h` has the contract.
///
/// # Safety
/// `yaml` points to `yaml_len` readable bytes, `file_name` to a text ended by NUL, `options` is NULL or
/// such a text; `engine` is an engine, `cancel` NULL or a flag; each out-pointer is NULL or writable;
/// `on_event` may be called with `user` until this function returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_train(
    engine: *const forgelm_engine,
    yaml: *const c_char,
    yaml_len: usize,
    file_name: *const c_char,
    options: *const c_char,
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
        let file_name = unsafe { text(file_name, "file_name") }?;
        // SAFETY: by this function's contract.
        let request = request(unsafe { optional_text(options, "options") }?, engine.is_offline())?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let plan = plan_of(yaml, file_name)?;
        let env = engine.environment(Arc::clone(&stop));
        let mut ear = Ear::new(on_event, user, stop);
        let mut plugins = plugins::load(&plan, &env)?;
        let outcome = train(&plan, &request, &mut plugins, &env, &mut ear)?;
        let mut result = outcome.to_json();
        let status = Status::from(outcome.exit());
        result["exit_code"] = json!(status as i32);
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_result, || owned(&result.to_string())) };
        Ok(status)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// `{"resume": true | "DIR", "force_resume", "offline", "strict_compliance"}`.
fn request(options: Option<&str>, is_offline: bool) -> Result<Request, Failure> {
    let mut options = Options::parse("options", options)?;
    let resume = match options.json("resume") {
        None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => Resume::No,
        Some(serde_json::Value::Bool(true)) => Resume::Newest,
        Some(serde_json::Value::String(dir)) => Resume::From(dir.into()),
        Some(_) => {
            let text = "`options.resume` is neither true, false nor a checkpoint's folder";
            return Err(crate::options::wrong(text));
        }
    };
    let request = Request {
        resume,
        force_resume: options.flag("force_resume")?,
        offline: options.flag("offline")? || is_offline,
        expected: None,
        strict_compliance: options.flag("strict_compliance")?,
    };
    options.finish()?;
    Ok(request)
}
