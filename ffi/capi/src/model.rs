//! A model that a host serves: answers, scores, adapters.

use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock};

use forgelm_config::{ComputeDtype, Device};
use forgelm_run::model::ModelRequest;
use forgelm_run::serve::{Answer, AnswerOptions, Message, Prompt, Sampling, Scores, Served};
use serde_json::{Value, json};

use crate::border::{call, optional_text, owned, put, text};
use crate::cancel::forgelm_cancel;
use crate::engine::{forgelm_engine, stop_of};
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::{Handle, Kind, User};
use crate::options::{Options, kind, wrong};
use crate::tensor::{DLManagedTensor, of_floats};
use crate::train::{Ear, forgelm_event_fn};

/// A model. Readers work at once; an adapter is changed while nobody reads.
pub struct Model {
    served: RwLock<Served>,
    /// Seconds since 1970 when it was loaded: what chat templates take for the present.
    now: i64,
}

impl Kind for Model {
    const TAG: u64 = 0x6c65_646f_6d5f_3131;
    const NAME: &'static str = "forgelm_model";
}

/// The handle of the header.
#[expect(non_camel_case_types, reason = "its name in C")]
pub type forgelm_model = Handle<Model>;

/// A host that gets an answer in pieces.
#[expect(non_camel_case_types, reason = "its name in C")]
pub type forgelm_piece_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, prompt: usize, piece: *const c_char) -> i32>;

/// Loads a model; `forgelm.h` has the contract.
///
/// # Safety
/// `name` is a text ended by NUL, `options` NULL or one; `engine` is an engine, `cancel` NULL or a
/// flag; each out-pointer is NULL or writable; `on_event` may be called with `user` until this function
/// returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_load(
    engine: *const forgelm_engine,
    name: *const c_char,
    options: *const c_char,
    on_event: forgelm_event_fn,
    user: *mut c_void,
    out_model: *mut *mut forgelm_model,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        if out_model.is_null() {
            return Err(Failure::argument("out_model", "is NULL"));
        }
        let engine = Handle::borrow(engine, "engine")?;
        // SAFETY: by this function's contract.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: by this function's contract.
        let request = request(name, unsafe { optional_text(options, "options") }?)?;
        let request = ModelRequest { offline: request.offline || engine.is_offline(), ..request };
        let env = engine.environment(Arc::default());
        let mut ear = Ear::new(on_event, user, Arc::default());
        let served = RwLock::new(Served::load(&request, &env, &mut ear)?);
        let now = env.clock.utc().0.div_euclid(1_000_000);
        // SAFETY: writable by this function's contract.
        unsafe { put(out_model, || Handle::give(Model { served, now })) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// `{"revision", "adapter", "offline", "threads", "compute_dtype", "chat_template"}`.
fn request(name: &str, options: Option<&str>) -> Result<ModelRequest, Failure> {
    let mut options = Options::parse("options", options)?;
    let compute = match options.text("compute_dtype")?.as_deref() {
        None | Some("auto") => ComputeDtype::Auto,
        Some("float32") => ComputeDtype::Float32,
        Some("bfloat16") => ComputeDtype::Bfloat16,
        Some(other) => {
            let expected = "expected auto, float32 or bfloat16";
            return Err(wrong(&format!("`options.compute_dtype` is `{other}`; {expected}")));
        }
    };
    let device = device_of(options.text("device")?, "options")?;
    let request = ModelRequest {
        revision: options.text("revision")?,
        adapter: options.path("adapter")?,
        offline: options.flag("offline")?,
        threads: options.whole("threads", 4096)?.and_then(|n| usize::try_from(n).ok()),
        chat_template: options.text("chat_template")?,
        compute,
        device,
        ..ModelRequest::named(name)
    };
    options.finish()?;
    Ok(request)
}

/// The device that a text names; the first one, or the processor, without.
pub(crate) fn device_of(text: Option<String>, place: &str) -> Result<Device, Failure> {
    let Some(text) = text else { return Ok(Device::Auto) };
    let expected = "expected `auto`, `cpu` or `cuda:N`";
    text.parse().map_err(|_| wrong(&format!("`{place}.device` is `{text}`; {expected}")))
}

/// What is loaded; `forgelm.h` has the contract.
///
/// # Safety
/// `model` is a model; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_info(
    model: *const forgelm_model,
    out_info: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        let info = model.served.read().unwrap_or_else(PoisonError::into_inner).info();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_info, || owned(&info.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Puts an adapter on a model, or takes it off; `forgelm.h` has the contract.
///
/// # Safety
/// `model` is a model; `dir` is NULL or a text ended by NUL; `out_error` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_set_adapter(
    model: *const forgelm_model,
    dir: *const c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        // SAFETY: by this function's contract.
        let dir = unsafe { optional_text(dir, "dir") }?;
        // A callback that comes back here would wait for itself.
        let Ok(mut served) = model.served.try_write() else {
            let text = "`model` is at work: an adapter is changed while nobody asks it";
            return Err(Failure::new(Status::Busy, text));
        };
        match dir {
            Some(dir) => served.attach(dir.as_ref())?,
            None => served.detach(),
        }
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Answers prompts; `forgelm.h` has the contract.
///
/// # Safety
/// `request` is a text ended by NUL; `model` is a model, `cancel` NULL or a flag; each out-pointer is
/// NULL or writable; `on_piece` may be called with `user` until this function returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_generate(
    model: *const forgelm_model,
    request: *const c_char,
    on_piece: forgelm_piece_fn,
    user: *mut c_void,
    cancel: *const forgelm_cancel,
    out_answers: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        // SAFETY: by this function's contract.
        let mut request = Options::parse("request", Some(unsafe { text(request, "request") }?))?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let is_stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
        let prompts = prompts(request.json("prompts"))?;
        let options = answer_options(&mut request, model.now)?;
        request.finish()?;
        let served = model.served.read().unwrap_or_else(PoisonError::into_inner);
        let user = User(user);
        let answers = served.answer(&prompts, &options, &mut |n, piece| {
            if is_stopped() || !tell(on_piece, user, n, piece) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if is_stopped() {
            return Err(Failure::new(Status::Interrupted, "stopped as asked"));
        }
        let answers: Vec<Value> = answers.iter().map(answer).collect();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_answers, || owned(&json!({"answers": answers}).to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Whether the host wants more of this answer.
fn tell(on_piece: forgelm_piece_fn, user: User, prompt: usize, piece: &str) -> bool {
    let Some(on_piece) = on_piece else { return true };
    let piece = CString::new(piece.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: the host passed this function for this call with this pointer, and the text lives as
    // long as the call.
    unsafe { on_piece(user.0, prompt, piece.as_ptr()) == 0 }
}

fn answer(answer: &Answer) -> Value {
    json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "n_prompt_tokens": answer.n_prompt_tokens,
        "finish_reason": answer.finish_reason,
    })
}

/// Scores texts; `forgelm.h` has the contract.
///
/// # Safety
/// As `forgelm_model_generate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_score(
    model: *const forgelm_model,
    request: *const c_char,
    cancel: *const forgelm_cancel,
    out_scores: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        // SAFETY: by this function's contract.
        let mut request = Options::parse("request", Some(unsafe { text(request, "request") }?))?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let prompts = prompts(request.json("prompts"))?;
        request.finish()?;
        let served = model.served.read().unwrap_or_else(PoisonError::into_inner);
        let goes_on = &mut || !stop.load(std::sync::atomic::Ordering::Relaxed);
        let scores = served.score(&prompts, model.now, goes_on)?;
        let scores: Vec<Value> = scores.iter().map(score).collect();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_scores, || owned(&json!({"scores": scores}).to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

fn score(scores: &Scores) -> Value {
    let sum: f64 = scores.logprobs.iter().map(|&logp| f64::from(logp)).sum();
    json!({"tokens": scores.tokens, "logprobs": scores.logprobs, "sum_logprob": sum})
}

/// Scores one text into a tensor; `forgelm.h` has the contract.
///
/// # Safety
/// As `forgelm_model_generate`; `out_logprobs` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_logprobs(
    model: *const forgelm_model,
    prompt: *const c_char,
    cancel: *const forgelm_cancel,
    out_logprobs: *mut *mut DLManagedTensor,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        if out_logprobs.is_null() {
            return Err(Failure::argument("out_logprobs", "is NULL"));
        }
        let model = Handle::borrow(model, "model")?;
        // SAFETY: by this function's contract.
        let prompt = one_prompt(unsafe { text(prompt, "prompt") }?)?;
        // SAFETY: by this function's contract.
        let stop = unsafe { stop_of(cancel) }?;
        let served = model.served.read().unwrap_or_else(PoisonError::into_inner);
        let goes_on = &mut || !stop.load(std::sync::atomic::Ordering::Relaxed);
        let mut scores = served.score(&[prompt], model.now, goes_on)?;
        let logprobs = scores.pop().map(|scores| scores.logprobs).unwrap_or_default();
        // SAFETY: writable by this function's contract.
        unsafe { put(out_logprobs, || of_floats(logprobs)) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// The tokens of a prompt; `forgelm.h` has the contract.
///
/// # Safety
/// `prompt` is a text ended by NUL; `model` is a model; each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_encode(
    model: *const forgelm_model,
    prompt: *const c_char,
    out_tokens: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        // SAFETY: by this function's contract.
        let prompt = one_prompt(unsafe { text(prompt, "prompt") }?)?;
        let served = model.served.read().unwrap_or_else(PoisonError::into_inner);
        let tokens = json!({"tokens": served.encode(&prompt, model.now)?});
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_tokens, || owned(&tokens.to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// The text of tokens; `forgelm.h` has the contract.
///
/// # Safety
/// `tokens` points to `n_tokens` readable numbers; `model` is a model; each out-pointer is NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_decode(
    model: *const forgelm_model,
    tokens: *const u32,
    n_tokens: usize,
    out_text: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        let model = Handle::borrow(model, "model")?;
        if n_tokens > 0 && (tokens.is_null() || !tokens.is_aligned() || n_tokens > 1 << 32) {
            return Err(Failure::argument("tokens", &format!("cannot have {n_tokens} numbers")));
        }
        let tokens = match n_tokens {
            0 => &[],
            // SAFETY: not NULL, aligned and of a possible length by the test above; readable by this
            // function's contract.
            n => unsafe { std::slice::from_raw_parts(tokens, n) },
        };
        let served = model.served.read().unwrap_or_else(PoisonError::into_inner);
        let decoded = served.decode(tokens)?;
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_text, || owned(&decoded)) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// A prompt as JSON; what is no JSON is a text as it stands.
fn one_prompt(text: &str) -> Result<Prompt, Failure> {
    match serde_json::from_str::<Value>(text) {
        Ok(value @ Value::Object(_)) => {
            read_prompt(&value).map_err(|problem| wrong(&format!("`prompt` {problem}")))
        }
        Ok(_) | Err(_) => Ok(Prompt::Text(text.to_owned())),
    }
}

/// Frees a model; NULL is fine.
///
/// # Safety
/// `model` is NULL or a model that no call works with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_model_free(model: *mut forgelm_model) {
    Handle::free(model);
}

/// Each of `{"messages": [{"role", "content"}]}`, `{"text"}`, `{"tokens"}`, or a text alone.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, Failure> {
    let Some(Value::Array(prompts)) = value else {
        let found = value.as_ref().map_or("missing", kind);
        return Err(wrong(&format!("`request.prompts` is {found}; expected a list")));
    };
    if prompts.is_empty() {
        return Err(wrong("`request.prompts` is empty; expected at least one prompt"));
    }
    let prompt = |(i, value): (usize, &Value)| {
        read_prompt(value).map_err(|problem| wrong(&format!("`request.prompts[{i}]` {problem}")))
    };
    prompts.iter().enumerate().map(prompt).collect()
}

fn read_prompt(value: &Value) -> Result<Prompt, String> {
    if let Value::String(text) = value {
        return Ok(Prompt::Text(text.clone()));
    }
    let one_of = "expected a text, or an object with `messages`, `text` or `tokens`";
    let object = value.as_object().filter(|object| object.len() == 1);
    let member = object.and_then(|object| object.iter().next());
    match member {
        Some((key, Value::String(text))) if key == "text" => Ok(Prompt::Text(text.clone())),
        Some((key, Value::Array(tokens))) if key == "tokens" => {
            let token = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok());
            let tokens = tokens.iter().map(token).collect::<Option<_>>();
            tokens.map(Prompt::Tokens).ok_or_else(|| "has a token that is no number".to_owned())
        }
        Some((key, Value::Array(messages))) if key == "messages" => {
            let message = |message: &Value| {
                let text = |key: &str| message[key].as_str();
                Some(Message::new(text("role")?, text("content")?))
            };
            let messages = messages.iter().map(message).collect::<Option<_>>();
            messages
                .map(Prompt::Messages)
                .ok_or_else(|| "has a message without `role` or `content`".to_owned())
        }
        Some(_) | None => Err(format!("is {}; {one_of}", kind(value))),
    }
}

/// `{"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "batch_size"}`.
#[expect(clippy::cast_possible_truncation, reason = "within these bounds")]
fn answer_options(request: &mut Options, now: i64) -> Result<AnswerOptions, Failure> {
    let defaults = AnswerOptions::default();
    let size =
        |n: Option<u64>, default: usize| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    let temperature = request.number("temperature", 0.0, 2.0)?.unwrap_or(0.0) as f32;
    let top_p = request.number("top_p", 1e-6, 1.0)?.unwrap_or(1.0) as f32;
    let top_k = size(request.whole("top_k", 1 << 20)?, 0);
    let penalty = request.number("repetition_penalty", 0.1, 10.0)?.unwrap_or(1.0) as f32;
    let sampling =
        Sampling { temperature, top_k, top_p, repetition_penalty: penalty, adaptive: None };
    let is_greedy = temperature <= 0.0 && (penalty - 1.0).abs() < f32::EPSILON;
    Ok(AnswerOptions {
        max_new_tokens: size(request.whole("max_new_tokens", 1 << 24)?, defaults.max_new_tokens),
        sampling: if is_greedy { Sampling::GREEDY } else { sampling },
        seed: request.whole("seed", 1 << 53)?.unwrap_or(defaults.seed),
        batch_size: size(request.whole("batch_size", 4096)?, defaults.batch_size).max(1),
        now,
    })
}
