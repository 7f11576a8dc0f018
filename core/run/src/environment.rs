//! What a run may know of the world. The program's edge reads it once and hands it in; nothing
//! below reads the environment, the clock or the terminal by itself.

use forgelm_artifact::time::Clock;
use forgelm_config::Secret;
use forgelm_hub::HubOptions;
use forgelm_kernels_cuda::Folders;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Looks up a variable of the environment that is set and not empty.
pub type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Starts a program that signs: its words, and the message on its input; what it printed.
pub type SigningProgram = fn(&[String], &[u8]) -> Result<Vec<u8>, String>;

/// Starts a program that answers and ends: with these arguments, what it printed.
pub type AskProgram = fn(&Path, &[&str]) -> Result<String, String>;

/// The world as the edge found it.
#[derive(Clone)]
pub struct Environment {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Processor time of this process so far, over all threads.
    pub cpu_time: fn() -> Option<Duration>,
    /// Name of the user, when the system has one.
    pub user: Option<String>,
    /// Name of the host.
    pub host: String,
    /// `FORGELM_OPERATOR`.
    pub operator: Option<String>,
    /// `FORGELM_ALLOW_ANONYMOUS_OPERATOR` is 1.
    pub allow_anonymous_operator: bool,
    /// `FORGELM_ALLOW_AUDIT_REROOT` is 1.
    pub allow_audit_reroot: bool,
    /// `FORGELM_AUDIT_SECRET`.
    pub audit_secret: Option<Secret>,
    /// Token for the model hub.
    pub hub_token: Option<Secret>,
    /// `HF_ENDPOINT`: the address of the model hub, where it is not the usual one.
    pub hub_endpoint: Option<String>,
    /// One of the offline variables is set.
    pub offline: bool,
    /// Where fetched packages are kept.
    pub cache_dir: PathBuf,
    /// Where the model hub's own tools keep what they fetched.
    pub hub_cache_dir: PathBuf,
    /// Where NVIDIA's libraries may lie, besides where the system looks: `FORGELM_CUDA_PATH` first,
    /// `CUDA_HOME`, `CUDA_PATH` and a Python environment last.
    pub cuda_folders: Folders,
    /// `FORGELM_OWN_ATTENTION` is 1: cuDNN is left alone where it is found.
    pub own_attention: bool,
    /// `FORGELM_NO_NCCL` is 1: NCCL is left alone where it is found.
    pub no_nccl: bool,
    /// Where programs keep their settings; the signing key is made in it when none is configured.
    pub config_dir: PathBuf,
    /// `FORGELM_SIGNING_KEY`: PEM text or a base64 seed.
    pub signing_key: Option<Secret>,
    /// `FORGELM_SIGNING_KEY_PASSPHRASE`.
    pub signing_key_passphrase: Option<Secret>,
    /// `FORGELM_SIGNING_KEY_FILE`.
    pub signing_key_file: Option<PathBuf>,
    /// `FORGELM_TRUSTED_KEYS`.
    pub trusted_keys: Option<PathBuf>,
    /// The folder of the program, beside which its plugins are.
    pub program_dir: Option<PathBuf>,
    /// `FORGELM_PLUGIN_PATH`, in parts, and the folder of the user's own plugins; empty when the program has more rights than its user.
    pub plugin_path: Vec<PathBuf>,
    /// The folder of the user's own plugins, whether it is there or not; none without a home, or when
    /// the program has more rights than its user.
    pub plugin_dir: Option<PathBuf>,
    /// The program that serves as a worker for plugins; none where there is no such program.
    pub plugin_worker: Option<PluginWorker>,
    /// Starts the program of `signing.command`.
    pub signing_program: SigningProgram,
    /// Asks a program of this machine about itself.
    pub ask_program: AskProgram,
    /// Shows a warning at once, from any thread: for what cannot wait until a call that hangs is back.
    pub alarm: fn(&str),
    /// Of this process.
    pub process_id: u32,
    /// Variables that a config names.
    pub variable: Lookup,
    /// From the operating system; names the run.
    pub random_bits: u128,
    /// Raised when the run should stop after its step.
    pub stop: Arc<AtomicBool>,
}

/// How this program is started as a worker for plugins.
#[derive(Clone, Debug)]
pub struct PluginWorker {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the number of threads follows them.
    pub args: Vec<OsString>,
    /// Its whole environment: nothing that is secret.
    pub environment: Vec<(OsString, OsString)>,
    /// What one that tries plugins on a device has besides: where NVIDIA's libraries and compiled
    /// kernels lie.
    pub device_environment: Vec<(OsString, OsString)>,
}

impl Environment {
    /// Whether the run should stop after its step.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Where models and data sets of a hub are kept and asked for.
    #[must_use]
    pub fn hub_options(&self) -> HubOptions {
        let options = HubOptions::new(self.cache_dir.clone(), self.hub_cache_dir.clone());
        HubOptions { endpoint: self.hub_endpoint.clone(), ..options }
    }

    /// A fresh run id: `fg-` and 12 hexadecimal digits.
    #[must_use]
    pub fn run_id(&self) -> String {
        format!("fg-{:012x}", self.random_bits & 0xffff_ffff_ffff)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use forgelm_artifact::{FixedClock, UtcTime};

    /// A world in which the system knows no user.
    pub(crate) fn nobody(dir: &Path) -> Environment {
        Environment {
            clock: Arc::new(FixedClock(UtcTime(0))),
            cpu_time: || None,
            user: None,
            host: "host".to_owned(),
            operator: None,
            allow_anonymous_operator: false,
            allow_audit_reroot: false,
            audit_secret: None,
            hub_token: None,
            hub_endpoint: None,
            offline: true,
            cuda_folders: Default::default(),
            own_attention: false,
            no_nccl: false,
            cache_dir: dir.join("cache"),
            hub_cache_dir: dir.join("hub"),
            config_dir: dir.join("config"),
            signing_key: None,
            signing_key_passphrase: None,
            signing_key_file: None,
            trusted_keys: None,
            program_dir: None,
            plugin_path: Vec::new(),
            plugin_dir: None,
            plugin_worker: None,
            signing_program: |_, _| Err("none".to_owned()),
            ask_program: |_, _| Err("none".to_owned()),
            alarm: |_| {},
            process_id: 1,
            variable: Arc::new(|_: &str| None),
            random_bits: 7,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }
}
