//! The plugins of a run: where they are looked for, what they say, and which of them took part.

mod check;
mod collective;
mod named;
mod signed;
mod terms;

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::kernels::{Chosen, Kernels};
use crate::model;
use crate::plan::Plan;
use crate::settings;
pub use check::{Checked, check};
pub use collective::{COLLECTIVES, EngineError, collective_file};
use forgelm_config::Device;
use forgelm_config::{PluginIsolation, TrainerType};
use forgelm_kernels_api::Ops;
pub use forgelm_loader::conformance::{Finding, Outcome};
use forgelm_loader::search::{Found, Places, find};
use forgelm_loader::{
    HostServices, Hung, Level, Library, LibraryFile, Loader, MakeKernels, WorkerProgram, worker,
};
use forgelm_plugin::{Kind, Origin, Plugin, Registry, Signature, Trainers};
use forgelm_sdk::OptionValue;
use forgelm_sdk::trainer::{Records, Trainer};
pub use named::Named;
pub(crate) use named::options;
use serde_json::{Map, Value, json};
pub use signed::{Signed, sign};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use terms::Terms;

/// Lines of plugins that wait to be told; more are counted.
const LINES_MAX: usize = 1000;

/// Everything that was loaded, and what it says.
#[derive(Debug)]
pub struct Plugins {
    registry: Registry,
    libraries: Vec<LibraryRecord>,
    notes: Vec<String>,
    lines: Arc<Lines>,
    kernels: Kernels,
}

/// A library that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryRecord {
    /// Name, version, file and digest.
    pub origin: Arc<Origin>,
    /// The plugin ABI that it was built for.
    pub abi: String,
    /// Whether it ships with the program.
    pub is_bundled: bool,
    /// Kind, name and summary of each of its plugins.
    pub plugins: Vec<(&'static str, &'static str, &'static str)>,
}

impl LibraryRecord {
    /// As lists of plugins have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let plugins = self
            .plugins
            .iter()
            .map(|(kind, name, summary)| json!({"kind": kind, "name": name, "summary": summary}));
        json!({
            "name": self.origin.library,
            "version": self.origin.version,
            "path": self.origin.path,
            "sha256": self.origin.sha256,
            "abi": self.abi,
            "bundled": self.is_bundled,
            "isolation": isolation(&self.origin),
            "signature": self.origin.signature.as_ref().map(signature),
            "plugins": plugins.collect::<Vec<_>>(),
        })
    }
}

/// A plugin that took part in a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Used {
    kind: &'static str,
    name: &'static str,
    options: Vec<(String, OptionValue)>,
    origin: Arc<Origin>,
}

impl Used {
    /// This one did, with these options.
    #[must_use]
    pub fn of<K: Kind>(plugin: &Plugin<K>, options: &[(&str, OptionValue)]) -> Self {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let (options, origin) = (options.collect(), Arc::clone(&plugin.origin));
        Self { kind: K::NAME, name: plugin.name, options, origin }
    }

    /// Its name and the digest of its library.
    pub(crate) fn digest(&self) -> String {
        format!("{} {}", self.name, self.origin.sha256)
    }

    /// Whether it is of this kind.
    #[must_use]
    pub fn is<K: Kind>(&self) -> bool {
        self.kind == K::NAME
    }

    /// Its name in the config.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The library that it came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What it was told.
    pub fn options(&self) -> impl Iterator<Item = (&str, Value)> {
        self.options.iter().map(|(name, value)| (name.as_str(), value.into()))
    }

    /// What it was told, as the documents have it.
    #[must_use]
    pub fn options_json(&self) -> Map<String, Value> {
        self.options().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// As the documents have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "kind": self.kind,
            "name": self.name,
            "library": self.origin.library,
            "version": self.origin.version,
            "path": self.origin.path,
            "sha256": self.origin.sha256,
            "isolation": isolation(&self.origin),
            "signature": self.origin.signature.as_ref().map(signature),
        })
    }
}

/// A signature as the documents have it.
#[must_use]
pub fn signature(of: &Signature) -> Value {
    json!({"keyid": of.keyid, "label": of.label, "signed_at": of.signed_at})
}

/// Where a library runs, as the config calls it.
#[must_use]
pub fn isolation(origin: &Origin) -> &'static str {
    let isolation =
        if origin.is_isolated { PluginIsolation::Process } else { PluginIsolation::InProcess };
    isolation.as_str()
}

/// What plugins said and nobody has told yet.
#[derive(Debug, Default)]
struct Lines(Mutex<(Vec<Event>, usize)>);

impl Lines {
    fn push(&self, event: Event) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.len() < LINES_MAX {
            lines.0.push(event);
        } else {
            lines.1 += 1;
        }
    }

    fn take(&self) -> (Vec<Event>, usize) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where to look: the config's paths, `FORGELM_PLUGIN_PATH`, beside the program.
fn places(config: &[String], env: &Environment) -> Places {
    Places {
        program_dir: env.program_dir.clone(),
        variable: env.plugin_path.clone(),
        config: config.iter().map(PathBuf::from).collect(),
    }
}

/// Loads every library that a run may use.
///
/// # Errors
/// If one cannot be used, its signature does not hold or is missing where one is demanded, or two of
/// them offer one name.
pub fn load(plan: &Plan, env: &Environment) -> Result<Plugins, RunError> {
    let section = plan.run.plugins.as_ref();
    let kernels = Kernels::new(model::device_of(&plan.run), plan.run.training.threads, env);
    load_as(section, trust_store(plan), kernels, env)
}

/// Loads every library that a command without a config may use: those beside the program and those
/// of `FORGELM_PLUGIN_PATH`.
///
/// # Errors
/// As [`load`].
pub fn load_default(
    device: Device,
    threads: Option<usize>,
    env: &Environment,
) -> Result<Plugins, RunError> {
    load_as(None, None, Kernels::new(device, threads, env), env)
}

fn load_as(
    section: Option<&forgelm_config::Plugins>,
    trust_store: Option<&Path>,
    kernels: Kernels,
    env: &Environment,
) -> Result<Plugins, RunError> {
    let paths = section.map_or(&[][..], |plugins| &plugins.paths);
    let terms = Terms::of(section, trust_store, env)?;
    let mut plugins = Plugins::empty(kernels);
    let mut loader = plugins.loader_on(&terms, env);
    for found in find(&places(paths, env))? {
        plugins.add_on(&terms, &mut loader, &found, env)?;
    }
    Ok(plugins)
}

/// The trust store that a config names.
fn trust_store(plan: &Plan) -> Option<&Path> {
    plan.run.signing.as_ref()?.trusted_keys.as_deref().map(Path::new)
}

/// Serves, as its worker, the program that started this process; plugins get kernels on this many
/// threads, and none if it is 0. Where `on_device` is the environment, they are tried on a device.
///
/// # Errors
/// If it was not started by a program that talks to workers.
pub fn serve(n_threads: usize, on_device: Option<&Environment>) -> io::Result<()> {
    let kernels = (n_threads > 0).then(|| Kernels::on_host(n_threads));
    let kernels = kernels.map(|kernels| Box::new(move || kernels.cpu()) as Box<MakeKernels>);
    let device = on_device.map(|env| {
        let kernels = Kernels::new(Device::Auto, Some(n_threads), env);
        Arc::new(move || kernels.device()) as Arc<worker::OpenDevice>
    });
    worker::serve(kernels, device)
}

/// Loads every library that is found, those of a config too, for a list of them; those that cannot be
/// used are told.
///
/// # Errors
/// If a place cannot be searched, or the trust store cannot be used.
pub fn list(
    plan: Option<&Plan>,
    paths: &[String],
    env: &Environment,
) -> Result<(Plugins, Vec<RunError>), RunError> {
    let section = plan.and_then(|plan| plan.run.plugins.as_ref());
    let of_config = section.map_or(&[][..], |plugins| &plugins.paths);
    let terms = Terms::of(section, plan.and_then(trust_store), env)?;
    let mut plugins = Plugins::empty(Kernels::on_host(model::all_cores()));
    let mut loader = plugins.loader_on(&terms, env);
    let mut broken = Vec::new();
    for found in find(&places(&[of_config, paths].concat(), env))? {
        let added = plugins.add_on(&terms, &mut loader, &found, env);
        match added {
            Ok(()) => {}
            Err(
                error @ (RunError::Plugin(_)
                | RunError::Signature { .. }
                | RunError::Unsigned { .. }),
            ) => broken.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok((plugins, broken))
}

/// `plugins.deadline_seconds` of a check, whose calls are small.
const CHECK_DEADLINE: u64 = 30;

impl Plugins {
    fn empty(kernels: Kernels) -> Self {
        let (registry, lines) = (Registry::default(), Arc::default());
        Self { registry, libraries: Vec::new(), notes: Vec::new(), lines, kernels }
    }

    /// The kernel library of the run. Where it is the processor's, plugins share its threads.
    ///
    /// # Errors
    /// If the device that the run asks for cannot be used.
    pub fn kernels(&self) -> Result<Arc<dyn Ops>, RunError> {
        Ok(self.choose()?.ops)
    }

    /// Those of the processor, whatever computes.
    pub(crate) fn host_kernels(&self) -> Arc<dyn Ops> {
        self.kernels.cpu()
    }

    /// [`Plugins::kernels`], with the reason where it is not what one might expect.
    pub(crate) fn choose(&self) -> Result<Chosen, RunError> {
        self.kernels.get()
    }

    /// Computes on these kernels, named as in a run's evidence, rather than on the best ones. To be
    /// called before they are first asked for; plugins in processes of their own have the best ones.
    ///
    /// # Errors
    /// If this machine does not have them.
    pub fn choose_kernels(&mut self, name: &str) -> Result<(), RunError> {
        self.kernels.choose(name)
    }

    fn loader(&self, env: &Environment, deadline_seconds: u64) -> Loader {
        let deadline = Duration::from_secs(deadline_seconds);
        let said = Arc::clone(&self.lines);
        let (events, stop) = (Arc::clone(&self.lines), Arc::clone(&env.stop));
        let kernels = self.kernels.clone();
        let device = self.kernels.clone();
        Loader::new(HostServices {
            log: Box::new(move |level, target, message| {
                let line = format!("plugin {target}: {message}");
                said.push(match level {
                    Level::Debug => Event::Detail(line),
                    Level::Info => Event::Notice(line),
                    Level::Warning | Level::Error => Event::Warning(line),
                });
            }),
            progress: Box::new(move |event| events.push(Event::Detail(format!("plugin: {event}")))),
            stop: Box::new(move || stop.load(Ordering::Relaxed)),
            kernels: Some(Box::new(move || kernels.cpu())),
            // One that cannot be used is told by the run itself, which asks for it too.
            device: Some(Box::new(move || device.get().ok()?.on_device())),
            serving: None,
            hung: Some(Arc::new(Hung { after: deadline, tell: Box::new(env.alarm) })),
        })
    }

    /// How a worker is started: its kernels have as many threads as ours.
    fn worker_program(
        &self,
        env: &Environment,
        deadline_seconds: u64,
    ) -> Result<WorkerProgram, RunError> {
        Self::worker_program_on(self.kernels.n_threads(), env, deadline_seconds)
    }

    /// The same with another number of threads, or 0 for no kernels.
    fn worker_program_on(
        n_threads: usize,
        env: &Environment,
        deadline_seconds: u64,
    ) -> Result<WorkerProgram, RunError> {
        let mut worker = env.plugin_worker.clone().ok_or(RunError::NoPluginWorker)?;
        worker.args.push(n_threads.to_string().into());
        Ok(WorkerProgram {
            program: worker.program,
            args: worker.args,
            environment: worker.environment,
            silence_max: Duration::from_secs(deadline_seconds),
        })
    }

    /// Loads a library, in a worker if there is to be one.
    fn add(
        &mut self,
        loader: &mut Loader,
        found: &Found,
        file: &LibraryFile,
        worker: Option<&WorkerProgram>,
    ) -> Result<(), RunError> {
        let library = match worker {
            Some(worker) => loader.open_in_worker(file, worker)?,
            None => loader.open(file)?,
        };
        library.map_or(Ok(()), |library| self.put(library, found.is_bundled))
    }

    fn put(&mut self, library: Library, is_bundled: bool) -> Result<(), RunError> {
        let Library { origin, abi, offers, notes, .. } = library;
        let mut plugins = Vec::new();
        plugins.extend(offers.trainers.iter().map(entry));
        plugins.extend(offers.merge_methods.iter().map(entry));
        plugins.extend(offers.quantizers.iter().map(entry));
        plugins.extend(offers.evaluators.iter().map(entry));
        plugins.extend(offers.rewards.iter().map(entry));
        plugins.extend(offers.collectives.iter().map(entry));
        self.registry.add(offers)?;
        self.notes.extend(notes);
        self.libraries.push(LibraryRecord { origin, abi, is_bundled, plugins });
        Ok(())
    }

    /// What each name stands for.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What was loaded, in the order of loading.
    #[must_use]
    pub fn libraries(&self) -> &[LibraryRecord] {
        &self.libraries
    }

    /// Tells what was noticed while loading, and what plugins said since the last call.
    pub fn tell(&mut self, observer: &mut dyn Observer) {
        for note in self.notes.drain(..) {
            observer.observe(&Event::Warning(note));
        }
        self.tell_lines(observer);
    }

    /// Tells what plugins said since the last call.
    pub fn tell_lines(&self, observer: &mut dyn Observer) {
        let (lines, n_lost) = self.lines.take();
        for line in &lines {
            observer.observe(line);
        }
        if n_lost > 0 {
            let text = format!("plugins said {n_lost} lines more than {LINES_MAX} at once");
            observer.observe(&Event::Warning(text));
        }
    }

    /// The trainer that a plan names.
    ///
    /// # Errors
    /// If there is none of that name, or it is not for these records.
    pub fn trainer(&self, plan: &Plan) -> Result<&Plugin<Trainers>, RunError> {
        let trainer_type = plan.run.training.trainer_type;
        let Some(name) = Named::trainer(&plan.run).name() else {
            return Ok(self.registry.trainer(&trainer_type.to_string())?);
        };
        let plugin = self.registry.trainer(name)?;
        let (needed, read) = (plugin.needs.records, records_of(trainer_type));
        if needed != read {
            return Err(RunError::TrainerRecords {
                name: name.to_owned(),
                origin: plugin.origin.to_string(),
                needed: shown(needed),
                trainer_type: trainer_type.as_str(),
                read: shown(read),
            });
        }
        Ok(plugin)
    }
}

fn entry<K: Kind>(plugin: &Plugin<K>) -> (&'static str, &'static str, &'static str) {
    (K::NAME, plugin.name, plugin.summary)
}

/// Makes the trainer of a plan, with its options.
///
/// # Errors
/// If an option cannot be used.
pub fn build_trainer(
    plan: &Plan,
    plugin: &Plugin<Trainers>,
) -> Result<(Box<dyn Trainer>, Used), RunError> {
    let named = Named::trainer(&plan.run);
    let options = named.options_or(|| settings::trainer_options(&plan.run))?;
    let trainer = named.made(plugin, (plugin.build)(&options))?;
    Ok((trainer, Used::of(plugin, &options)))
}

fn records_of(trainer_type: TrainerType) -> Records {
    match trainer_type {
        TrainerType::Sft => Records::Text,
        TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo => Records::Preference,
        TrainerType::Kto => Records::Labelled,
        TrainerType::Grpo => Records::Prompt,
    }
}

fn shown(records: Records) -> &'static str {
    match records {
        Records::Text => "texts",
        Records::Preference => "preference pairs",
        Records::Labelled => "labelled answers",
        Records::Prompt => "prompts",
    }
}
