//! The world, read once: environment variables, user, host, clocks, the program that signs and the
//! compiler for MPI. The only crate that asks for them, so that the program and the library for C
//! see the same.
//!
//! It refuses to know what is done with any of it.

mod ask;
pub mod compiler;
pub mod process_group;
mod signing_program;

use forgelm_artifact::time::{Clock, UtcTime};
use forgelm_config::Secret;
use forgelm_kernels_cuda::Folders;
use forgelm_run::environment::{Environment, Lookup, PluginWorker};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the room where the clock is read")]
    pub fn start() -> Arc<Self> {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the room where the clock is read")]
    fn utc(&self) -> UtcTime {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UtcTime(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A variable of the environment that is set and not empty.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the room where the environment is read")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A name for something that does not last, where the system keeps that; nothing has it.
#[must_use]
pub fn passing_name(begin: &str) -> PathBuf {
    let place = variable("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    place.join(format!("{begin}-{:032x}", random_bits()))
}

/// How the world is looked at.
#[derive(Clone)]
pub struct View {
    /// Variables of the environment: [`variable`], or those that a host passes.
    pub variable: Lookup,
    /// The program that serves as a worker for plugins, and beside which plugins are; none in a process
    /// that is no such program.
    pub program: Option<PathBuf>,
    /// Shows a warning at once, from any thread.
    pub alarm: fn(&str),
}

/// Everything that a run may know of its environment.
#[must_use]
pub fn environment(clock: Arc<dyn Clock>, view: &View) -> Environment {
    let variable = |name: &str| (view.variable)(name);
    let home = variable("HOME").map(PathBuf::from);
    let under_home = |name: &str, rest: &str| {
        variable(name).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(rest)))
    };
    let fallback = || PathBuf::from(".");
    let hub_home = under_home("HF_HOME", ".cache/huggingface").unwrap_or_else(fallback);
    Environment {
        clock,
        cpu_time,
        user: variable("USER").or_else(|| variable("LOGNAME")).or_else(account),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        operator: variable("FORGELM_OPERATOR"),
        allow_anonymous_operator: is_one(variable("FORGELM_ALLOW_ANONYMOUS_OPERATOR")),
        allow_audit_reroot: is_one(variable("FORGELM_ALLOW_AUDIT_REROOT")),
        audit_secret: variable("FORGELM_AUDIT_SECRET").map(Secret::new),
        hub_token: variable("HUGGINGFACE_TOKEN").or_else(|| variable("HF_TOKEN")).map(Secret::new),
        hub_endpoint: variable("HF_ENDPOINT"),
        offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"]
            .into_iter()
            .any(|name| is_truthy(variable(name))),
        cache_dir: under_home("XDG_CACHE_HOME", ".cache").unwrap_or_else(fallback).join("forgelm"),
        hub_cache_dir: variable("HF_HUB_CACHE").map_or_else(|| hub_home.join("hub"), PathBuf::from),
        cuda_folders: cuda_folders(&variable),
        own_attention: is_one(variable("FORGELM_OWN_ATTENTION")),
        no_nccl: is_one(variable("FORGELM_NO_NCCL")),
        config_dir: under_home("XDG_CONFIG_HOME", ".config").unwrap_or_else(fallback),
        signing_key: variable("FORGELM_SIGNING_KEY").map(Secret::new),
        signing_key_passphrase: variable("FORGELM_SIGNING_KEY_PASSPHRASE").map(Secret::new),
        signing_key_file: variable("FORGELM_SIGNING_KEY_FILE").map(PathBuf::from),
        trusted_keys: variable("FORGELM_TRUSTED_KEYS").map(PathBuf::from),
        program_dir: view.program.as_deref().and_then(folder_of),
        plugin_path: plugin_path(
            variable("FORGELM_PLUGIN_PATH"),
            // A host that starts no workers is told its places, and gets nothing else.
            view.program.as_ref().and_then(|_| under_home("XDG_DATA_HOME", ".local/share")),
        ),
        plugin_dir: under_home("XDG_DATA_HOME", ".local/share")
            .filter(|_| !has_more_rights())
            .map(plugin_dir),
        plugin_worker: view.program.clone().map(|program| worker(program, &variable)),
        signing_program: signing_program::run,
        ask_program: ask::run,
        alarm: view.alarm,
        process_id: std::process::id(),
        variable: Arc::clone(&view.variable),
        random_bits: random_bits(),
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// A program as a worker, with what a library needs to find others and to print, and no secret.
fn worker(program: PathBuf, variable: &dyn Fn(&str) -> Option<String>) -> PluginWorker {
    let kept = |names: &[&str]| {
        names.iter().filter_map(|name| Some((name.into(), variable(name)?.into()))).collect()
    };
    PluginWorker {
        program,
        args: vec!["plugin-worker".into()],
        environment: kept(&["PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR"]),
        device_environment: kept(&DEVICE_VARIABLES),
    }
}

/// What [`environment`] reads to find a device, and the driver to count them.
const DEVICE_VARIABLES: [&str; 8] = [
    "FORGELM_CUDA_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "XDG_CACHE_HOME",
    "HOME",
];

/// Where NVIDIA's libraries may lie: a toolkit, or the wheels of a Python environment.
fn cuda_folders(variable: &dyn Fn(&str) -> Option<String>) -> Folders {
    let first = variable("FORGELM_CUDA_PATH").unwrap_or_default();
    let first: Vec<PathBuf> =
        std::env::split_paths(&first).filter(|path| !path.as_os_str().is_empty()).collect();
    let mut last: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(|name| variable(name))
        .map(PathBuf::from)
        .collect();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| variable(name)) {
        // One folder for each Python: `lib/python3.12/site-packages`.
        let pythons =
            std::fs::read_dir(Path::new(&root).join("lib")).into_iter().flatten().flatten();
        let mut packages: Vec<PathBuf> = pythons
            .map(|python| python.path().join("site-packages"))
            .filter(|p| p.is_dir())
            .collect();
        packages.sort();
        last.append(&mut packages);
    }
    Folders { first, last }
}

/// The folder of a program, links followed.
fn folder_of(program: &Path) -> Option<PathBuf> {
    program.canonicalize().unwrap_or_else(|_| program.to_owned()).parent().map(PathBuf::from)
}

/// The folder of the user's own plugins, in that of all data.
fn plugin_dir(data: PathBuf) -> PathBuf {
    data.join("forgelm/plugins")
}

/// The places that the user adds: those of the variable, and the folder of the user's own plugins
/// where there is one. A program with more rights than its user takes no code from there.
fn plugin_path(places: Option<String>, data: Option<PathBuf>) -> Vec<PathBuf> {
    if has_more_rights() {
        return Vec::new();
    }
    let places = places.unwrap_or_default();
    let own = data.map(plugin_dir).filter(|dir| dir.is_dir());
    let of_variable = std::env::split_paths(&places).filter(|place| !place.as_os_str().is_empty());
    of_variable.chain(own).collect()
}

/// Whether this program may do more than who started it.
fn has_more_rights() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    getuid() != geteuid() || getgid() != getegid()
}

/// Processor time of this process, over all threads.
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).ok()?;
    Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
}

fn is_one(value: Option<String>) -> bool {
    value.as_deref() == Some("1")
}

fn is_truthy(value: Option<String>) -> bool {
    value.is_some_and(|value| {
        !["0", "false", "no", "off"].contains(&value.to_ascii_lowercase().as_str())
    })
}

/// The name of the user among the system's accounts.
fn account() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)? == uid).then_some(name)
    };
    accounts.lines().find_map(named)
}

/// Bits that name a run: from the operating system.
fn random_bits() -> u128 {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_or_else(|_| u128::from(std::process::id()), |()| u128::from_le_bytes(bytes))
}
