//! Which kernel library computes: that of the processor, or of an NVIDIA device.
//!
//! One is made when it is first asked for, and shared by everything that asks. Plugins in the program
//! get the processor's for what lies in the memory of the host, and the device's beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use forgelm_collective::CollectiveError;
use forgelm_config::Device;
use forgelm_kernels_api::{Failure, Ops};
use forgelm_kernels_cpu::{Cpu, InstructionSet};
use forgelm_kernels_cuda::{Availability, Cuda, CudaError, DeviceOptions, Folders, Libraries};

use crate::distributed::local_rank;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model::all_cores;

/// Kernel libraries for one device and number of threads.
#[derive(Clone)]
pub struct Kernels {
    device: Device,
    n_threads: usize,
    folders: Folders,
    own_attention: bool,
    no_nccl: bool,
    /// See [`local_rank`].
    local_rank: usize,
    /// Where kernels that are compiled here are kept.
    cache: PathBuf,
    cpu: Arc<OnceLock<Arc<dyn Ops>>>,
    chosen: Arc<Mutex<Option<Chosen>>>,
    alarm: fn(&str),
}

/// What computes.
#[derive(Clone)]
pub struct Chosen {
    /// The library.
    pub ops: Arc<dyn Ops>,
    /// Why it is the processor's, where a device was looked for.
    pub fallback: Option<Fallback>,
}

impl Chosen {
    /// The library, if it is that of a device.
    pub(crate) fn on_device(self) -> Option<Arc<dyn Ops>> {
        self.ops.on_device().is_some().then_some(self.ops)
    }

    /// Tells where a method works, and why not on a device that there is, or was looked for.
    pub(crate) fn tell(&self, method: &str, is_on_device: bool, observer: &mut dyn Observer) {
        let name = self.ops.name();
        observer.observe(&match (self.ops.on_device(), is_on_device) {
            (Some(_), true) => Event::Notice(format!("{method} works on {name}")),
            (Some(_), false) => Event::Notice(format!(
                "{method} works on the processor: it takes no tensors of {name}, or runs in a process \
                 of its own, where there are none"
            )),
            (None, _) => {
                if let Some(fallback) = &self.fallback {
                    fallback.tell(observer);
                }
                return;
            }
        });
    }
}

/// Why the processor computes where `auto` looked for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// There is none: as on most machines.
    NoDevice(String),
    /// There is one, and it cannot be used: whoever has it wants to know.
    Failed(String),
}

impl Fallback {
    fn of(error: &CudaError) -> Self {
        let text = Failure::from(error).to_string();
        match error {
            CudaError::NotUsable(Availability::NoDriver | Availability::NoDevice) => {
                Self::NoDevice(text)
            }
            CudaError::NotUsable(Availability::Usable { .. } | Availability::Failed(_))
            | CudaError::NoSuchDevice { .. }
            | CudaError::TooOld { .. }
            | CudaError::Driver { .. }
            | CudaError::Launch { .. }
            | CudaError::Earlier { .. }
            | CudaError::OutOfMemory { .. }
            | CudaError::NoImage { .. }
            | CudaError::NotCapturable { .. } => Self::Failed(text),
        }
    }

    /// Tells it: aloud where there is a device.
    pub(crate) fn tell(&self, observer: &mut dyn Observer) {
        let text = self.to_string();
        observer.observe(&match self {
            Self::NoDevice(_) => Event::Detail(text),
            Self::Failed(_) => {
                IS_TOLD.store(true, Ordering::Relaxed);
                Event::Warning(text)
            }
        });
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice(text) => write!(f, "{text}: the processor computes"),
            Self::Failed(text) => write!(
                f,
                "the processor computes, because the device cannot be used: {text}\n  hint: \
                 `forgelm doctor` tries it; `cpu` as the device never looks for one"
            ),
        }
    }
}

/// Whether somebody was told in this process that a device cannot be used.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// What is open on a device: one context and one pool of memory in a process.
static OPEN: Mutex<BTreeMap<usize, Weak<forgelm_kernels_cuda::Device>>> =
    Mutex::new(BTreeMap::new());

impl Kernels {
    /// Nothing is made or looked for yet. All cores without a number of threads.
    #[must_use]
    pub fn new(device: Device, n_threads: Option<usize>, env: &Environment) -> Self {
        Self {
            device,
            n_threads: n_threads.unwrap_or_else(all_cores),
            folders: env.cuda_folders.clone(),
            own_attention: env.own_attention,
            no_nccl: env.no_nccl,
            local_rank: local_rank(env),
            cache: env.cache_dir.join("kernels"),
            cpu: Arc::default(),
            chosen: Arc::default(),
            alarm: env.alarm,
        }
    }

    /// Of the processor, for the process of a plugin.
    pub(crate) fn on_host(n_threads: usize) -> Self {
        Self {
            device: Device::Cpu,
            n_threads,
            folders: Folders::default(),
            own_attention: false,
            no_nccl: false,
            local_rank: 0,
            cache: PathBuf::new(),
            cpu: Arc::default(),
            chosen: Arc::default(),
            alarm: |_| {},
        }
    }

    /// Threads on the host.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// The processor's.
    #[must_use]
    pub fn cpu(&self) -> Arc<dyn Ops> {
        Arc::clone(self.cpu.get_or_init(|| Arc::new(Cpu::new(self.n_threads))))
    }

    /// What computes.
    ///
    /// # Errors
    /// If the device that was asked for cannot be used. With `auto` never: then it is the processor,
    /// and `fallback` says why.
    pub fn get(&self) -> Result<Chosen, RunError> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chosen) = &*chosen {
            return Ok(chosen.clone());
        }
        let made = match self.device {
            Device::Cpu => Chosen { ops: self.cpu(), fallback: None },
            Device::Cuda(ordinal) => Chosen { ops: self.cuda(ordinal)?, fallback: None },
            Device::Auto => match self.cuda(self.ordinal_in_turn()) {
                Ok(ops) => Chosen { ops, fallback: None },
                Err(RunError::Device { source, .. }) => {
                    Chosen { ops: self.cpu(), fallback: Some(Fallback::of(&source)) }
                }
                Err(error) => return Err(error),
            },
        };
        *chosen = Some(made.clone());
        Ok(made)
    }

    /// The library of the device.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn device(&self) -> Result<Arc<dyn Ops>, String> {
        let chosen = self.get().map_err(|error| error.to_string())?;
        match &chosen.fallback {
            Some(Fallback::NoDevice(why) | Fallback::Failed(why)) => Err(why.clone()),
            None => chosen.on_device().ok_or_else(|| "none was asked for".to_owned()),
        }
    }

    /// [`Kernels::get`] for who has nobody to tell: that a device cannot be used is shown at once, a
    /// single time in a process.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn get_aloud(&self) -> Result<Arc<dyn Ops>, RunError> {
        let Chosen { ops, fallback } = self.get()?;
        if let Some(fallback @ Fallback::Failed(_)) = fallback
            && !IS_TOLD.swap(true, Ordering::Relaxed)
        {
            (self.alarm)(&fallback.to_string());
        }
        Ok(ops)
    }

    /// Computes on the kernels of this name from here on, as a run's evidence names them.
    ///
    /// # Errors
    /// If this machine does not have them.
    pub(crate) fn choose(&mut self, name: &str) -> Result<(), RunError> {
        let missing = || {
            RunError::NotReproducible(format!(
                "the run used the kernels `{name}`, which this machine does not have: the same bits \
                 are promised on the same kernels only"
            ))
        };
        let ops: Arc<dyn Ops> = match name.strip_prefix("cuda:").and_then(|n| n.split('/').next()) {
            Some(ordinal) => self.cuda(ordinal.parse().map_err(|_| missing())?)?,
            None => {
                let mut sets = InstructionSet::available().into_iter();
                let made = sets.find_map(|set| {
                    Cpu::with_instruction_set(self.n_threads, set).filter(|cpu| cpu.name() == name)
                });
                Arc::new(made.ok_or_else(missing)?)
            }
        };
        if ops.name() != name {
            return Err(missing());
        }
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Chosen { ops, fallback: None });
        Ok(())
    }

    /// The device that `auto` means: processes that a launcher starts on one host take its devices in
    /// turn.
    fn ordinal_in_turn(&self) -> usize {
        if self.local_rank == 0 {
            return 0;
        }
        match Libraries::find(&self.folders).availability() {
            Availability::Usable { n_devices, .. } => self.local_rank % n_devices,
            Availability::NoDriver | Availability::NoDevice | Availability::Failed(_) => 0,
        }
    }

    fn cuda(&self, ordinal: usize) -> Result<Arc<dyn Ops>, RunError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match open.get(&ordinal).and_then(Weak::upgrade) {
            Some(device) => device,
            None => {
                let libraries = Libraries::find(&self.folders);
                // Without a driver nothing is compiled, and nothing is to be written.
                let has_driver = libraries.driver.is_there();
                let compiled = has_driver.then(|| made_folder(&self.cache)).flatten();
                let options = DeviceOptions {
                    compiled,
                    own_attention: self.own_attention,
                    no_nccl: self.no_nccl,
                    alarm: Some(self.alarm),
                    ..DeviceOptions::default()
                };
                let device = forgelm_kernels_cuda::Device::open(ordinal, &libraries, options)
                    .map_err(|source| unusable(ordinal, source))?;
                open.insert(ordinal, Arc::downgrade(&device));
                device
            }
        };
        Ok(Arc::new(Cuda::new(device, self.n_threads)))
    }
}

/// Does some work of a run; where it ended because an op could not go on, or the processes that hold
/// its weights together could not, that is the error.
///
/// # Errors
/// Those of the work, [`RunError::Failed`] and [`RunError::Collective`].
pub fn caught<T>(work: impl FnOnce() -> Result<T, RunError>) -> Result<T, RunError> {
    let failed = || forgelm_kernels_api::caught(work);
    // AssertUnwindSafe: as there.
    let ended = catch_unwind(AssertUnwindSafe(failed));
    let ended = ended.unwrap_or_else(|payload| match payload.downcast::<CollectiveError>() {
        Ok(error) => Ok(Err((*error).into())),
        Err(payload) => resume_unwind(payload),
    });
    ended.unwrap_or_else(|failure| Err(failure.into()))
}

fn unusable(ordinal: usize, source: CudaError) -> RunError {
    RunError::Device { device: Device::Cuda(ordinal), source: Box::new(source) }
}

/// A folder that is there; none where it cannot be made: a cache may be missing.
fn made_folder(path: &Path) -> Option<PathBuf> {
    forgelm_artifact::write::create_dir_all_durable(path).ok().map(|()| path.to_owned())
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels")
            .field("device", &self.device)
            .field("n_threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ops.name())
    }
}
