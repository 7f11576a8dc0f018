//! The world, read once: environment variables, user, host, clocks. The only file of the program
//! that asks for them.

use crate::progress;
use crate::signing_program;
use forgelm_artifact::time::{Clock, UtcTime};
use forgelm_config::Secret;
use forgelm_run::environment::{Environment, PluginWorker};
use std::io::IsTerminal as _;
use std::path::PathBuf;
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

/// Whether results may be colored: standard output is a terminal, and `NO_COLOR` is not set.
#[must_use]
pub fn stdout_has_color() -> bool {
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_none()
}

/// Everything that a run may know of its environment.
#[must_use]
pub fn environment(clock: Arc<dyn Clock>) -> Environment {
    let home = variable("HOME").map(PathBuf::from);
    let under_home = |name: &str, rest: &str| {
        variable(name).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(rest)))
    };
    let fallback = || PathBuf::from(".");
    let hub_home = under_home("HF_HOME", ".cache/huggingface").unwrap_or_else(fallback);
    Environment {
        clock,
        cpu_time,
        user: user(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        operator: variable("FORGELM_OPERATOR"),
        allow_anonymous_operator: is_one("FORGELM_ALLOW_ANONYMOUS_OPERATOR"),
        allow_audit_reroot: is_one("FORGELM_ALLOW_AUDIT_REROOT"),
        audit_secret: variable("FORGELM_AUDIT_SECRET").map(Secret::new),
        hub_token: variable("HUGGINGFACE_TOKEN").or_else(|| variable("HF_TOKEN")).map(Secret::new),
        offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"]
            .into_iter()
            .any(is_truthy),
        cache_dir: under_home("XDG_CACHE_HOME", ".cache").unwrap_or_else(fallback).join("forgelm"),
        hub_cache_dir: variable("HF_HUB_CACHE").map_or_else(|| hub_home.join("hub"), PathBuf::from),
        config_dir: under_home("XDG_CONFIG_HOME", ".config").unwrap_or_else(fallback),
        signing_key: variable("FORGELM_SIGNING_KEY").map(Secret::new),
        signing_key_passphrase: variable("FORGELM_SIGNING_KEY_PASSPHRASE").map(Secret::new),
        signing_key_file: variable("FORGELM_SIGNING_KEY_FILE").map(PathBuf::from),
        trusted_keys: variable("FORGELM_TRUSTED_KEYS").map(PathBuf::from),
        program_dir: program_dir(),
        plugin_path: plugin_path(),
        plugin_worker: plugin_worker(),
        signing_program: signing_program::run,
        alarm: progress::alarm,
        process_id: std::process::id(),
        variable,
        random_bits: random_bits(),
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// This program again, with what a library needs to find others and to print, and no secret.
fn plugin_worker() -> Option<PluginWorker> {
    let kept = ["PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR"];
    let environment = kept.iter().filter_map(|name| Some((name.into(), variable(name)?.into())));
    Some(PluginWorker {
        program: std::env::current_exe().ok()?,
        args: vec!["plugin-worker".into()],
        environment: environment.collect(),
    })
}

/// The folder of the program itself, links followed.
fn program_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.canonicalize().unwrap_or(program).parent().map(PathBuf::from)
}

/// The places that the user adds. A program with more rights than its user takes no code from there.
fn plugin_path() -> Vec<PathBuf> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    if getuid() != geteuid() || getgid() != getegid() {
        return Vec::new();
    }
    let places = variable("FORGELM_PLUGIN_PATH").unwrap_or_default();
    std::env::split_paths(&places).filter(|place| !place.as_os_str().is_empty()).collect()
}

/// Processor time of this process, over all threads.
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).ok()?;
    Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
}

/// Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop after the step; the second
/// ends the program at once (checkpoints on disk stay valid).
///
/// # Errors
/// If the operating system refuses a handler.
pub fn stop_on_signals(stop: &Arc<AtomicBool>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag down and raises it.
        signal_hook::flag::register_conditional_shutdown(signal, 2, Arc::clone(stop))?;
        signal_hook::flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

fn is_one(name: &str) -> bool {
    variable(name).as_deref() == Some("1")
}

fn is_truthy(name: &str) -> bool {
    variable(name).is_some_and(|value| {
        !["0", "false", "no", "off"].contains(&value.to_ascii_lowercase().as_str())
    })
}

fn user() -> Option<String> {
    variable("USER").or_else(|| variable("LOGNAME")).or_else(|| {
        let uid = rustix::process::getuid().as_raw().to_string();
        let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
        let named = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            (fields.nth(1)? == uid).then_some(name)
        };
        accounts.lines().find_map(named)
    })
}

/// Bits that name a run: from the operating system.
fn random_bits() -> u128 {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_or_else(|_| u128::from(std::process::id()), |()| u128::from_le_bytes(bytes))
}
