//! The host's table, and what stands behind it.

use crate::border::lossy;
use crate::device::DeviceKernels;
use crate::float_mode::KeepFloatMode;
use crate::kernels::Kernels;
use crate::rng;
use crate::watch::{Calls, Hung, Life, Watch};
use forgelm_abi::{
    ABI_MAJOR, ABI_MINOR, DEVICE_KERNELS, GENERATE, HELD_OUT, KERNELS, RNG, SCORE,
    forgelm_generate, forgelm_held_out, forgelm_host, forgelm_score, forgelm_str, log_level,
};
use forgelm_kernels_api::Ops;
use forgelm_sdk::host::Level;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{from_ref, null, null_mut};
use std::sync::{Arc, OnceLock};

/// Takes a line of a plugin: importance, origin, text.
pub type Log = dyn Fn(Level, &str, &str) + Send + Sync;

/// Gives the kernel library of a program; called once, when a plugin first asks for it.
pub type MakeKernels = dyn Fn() -> Arc<dyn Ops> + Send + Sync;

/// Gives the library of the device that a program computes on, where it does; called once, when a
/// plugin first asks for it.
pub type MakeDevice = dyn Fn() -> Option<Arc<dyn Ops>> + Send + Sync;

/// What plugins may ask of the program. Functions are called from any thread.
pub struct HostServices {
    /// Takes a line.
    pub log: Box<Log>,
    /// Takes an event: a JSON object as text.
    pub progress: Box<dyn Fn(&str) + Send + Sync>,
    /// Whether work should stop.
    pub stop: Box<dyn Fn() -> bool + Send + Sync>,
    /// The kernels and threads that plugins share with the program; `None`: it offers none.
    pub kernels: Option<Box<MakeKernels>>,
    /// The device that the program computes on; `None`: it offers none.
    pub device: Option<Box<MakeDevice>>,
    /// Told when a service that may take long begins to work for a plugin, and when it ends.
    pub serving: Option<Box<dyn Fn(bool) + Send + Sync>>,
    /// What to do about a plugin in the program that hangs.
    pub hung: Option<Arc<Hung>>,
}

impl HostServices {
    /// A host that listens to nobody, never stops anybody, and has no kernels.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            log: Box::new(|_, _, _| ()),
            progress: Box::new(|_| ()),
            stop: Box::new(|| false),
            kernels: None,
            device: None,
            serving: None,
            hung: None,
        }
    }
}

impl fmt::Debug for HostServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostServices").finish_non_exhaustive()
    }
}

/// The table with what stands behind it: the table first, so that a pointer to one is one to the
/// other.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Host {
    table: forgelm_host,
    services: Arc<HostServices>,
    shared: Arc<Shared>,
    /// Of the library that has this table.
    life: Arc<Life>,
    /// Of that library too: a table of its own says whom kernels work for.
    kernels: Arc<OnceLock<Kernels>>,
    /// Likewise.
    device: Arc<OnceLock<Option<DeviceKernels>>>,
    for_evaluator: ForEvaluator,
}

/// What a host offers for one call of an evaluator.
#[derive(Debug, Default)]
pub(crate) struct ForEvaluator {
    pub(crate) score: Option<forgelm_score>,
    pub(crate) generate: Option<forgelm_generate>,
    pub(crate) held_out: Option<forgelm_held_out>,
}

/// What a host has once, however many tables.
#[derive(Default)]
struct Shared {
    ops: OnceLock<Arc<dyn Ops>>,
    device: OnceLock<Option<Arc<dyn Ops>>>,
    watch: Arc<Watch>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("watch", &self.watch).finish_non_exhaustive()
    }
}

// SAFETY: `host_data` is null, and what stands behind the table may be used from any thread; the
// services of an evaluator are set only in tables that live for one call.
unsafe impl Sync for Host {}

impl Host {
    /// For one library.
    fn new(services: Arc<HostServices>, shared: Arc<Shared>) -> Self {
        Self {
            table: forgelm_host {
                struct_size: crate::border::size::<forgelm_host>(),
                abi_major: ABI_MAJOR,
                abi_minor: ABI_MINOR,
                reserved: 0,
                host_data: null_mut(),
                get_extension: Some(get_extension),
                log: Some(log),
                is_cancelled: Some(is_cancelled),
                progress: Some(progress),
            },
            life: Arc::new(Life::of(&services)),
            services,
            shared,
            kernels: Arc::default(),
            device: Arc::default(),
            for_evaluator: ForEvaluator::default(),
        }
    }

    /// A host for as long as the process.
    pub(crate) fn leak(services: HostServices) -> &'static Self {
        Box::leak(Box::new(Self::new(Arc::new(services), Arc::default())))
    }

    /// The same host for one more library, for as long as the process: a table of its own says who
    /// calls.
    pub(crate) fn leak_for_library(&self) -> &'static Self {
        let (services, shared) = (Arc::clone(&self.services), Arc::clone(&self.shared));
        Box::leak(Box::new(Self::new(services, shared)))
    }

    /// What stands behind the table.
    pub(crate) fn services(&self) -> &Arc<HostServices> {
        &self.services
    }

    /// The same host with the services of an evaluator, for one call.
    pub(crate) fn with_services(&self, for_evaluator: ForEvaluator) -> Self {
        let (services, shared) = (Arc::clone(&self.services), Arc::clone(&self.shared));
        let (life, kernels) = (Arc::clone(&self.life), Arc::clone(&self.kernels));
        let device = Arc::clone(&self.device);
        Self { for_evaluator, life, kernels, device, ..Self::new(services, shared) }
    }

    /// Watches a plugin: its calls are counted in what this gives.
    pub(crate) fn watch(&self, who: String) -> Arc<Calls> {
        self.shared.watch.add(who, &self.life, self.services.hung.as_ref())
    }

    /// The signs of life of the library that has this table.
    pub(crate) fn life(&self) -> &Life {
        &self.life
    }

    /// The table, as plugins get it.
    pub(crate) fn table(&self) -> *const forgelm_host {
        from_ref(self).cast()
    }

    /// Whether it offers an extension, outside the call of an evaluator too.
    pub(crate) fn offers(&self, id: &str) -> bool {
        match id.as_bytes() {
            // Not made before a plugin asks for it.
            id if id == KERNELS.to_bytes() => self.services.kernels.is_some(),
            id if [SCORE, GENERATE, HELD_OUT].iter().any(|known| known.to_bytes() == id) => true,
            id => self.extension(id).is_some(),
        }
    }

    fn kernels(&self) -> Option<*const c_void> {
        let make = self.services.kernels.as_ref()?;
        let ops = self.shared.ops.get_or_init(|| {
            // Threads that it starts inherit the mode, and a plugin is at work now.
            let _mode = KeepFloatMode::default_meanwhile();
            make()
        });
        let new = || Kernels::new(Arc::clone(ops), Arc::clone(&self.life));
        let kernels = self.kernels.get_or_init(new);
        Some(kernels.table().cast())
    }

    fn device(&self) -> Option<*const c_void> {
        let make = self.services.device.as_ref()?;
        let ops = self.shared.device.get_or_init(|| {
            // As for the kernels.
            let _mode = KeepFloatMode::default_meanwhile();
            make()
        });
        let new = || DeviceKernels::new(Arc::clone(ops.as_ref()?), Arc::clone(&self.life));
        let kernels = self.device.get_or_init(new).as_ref()?;
        Some(kernels.table().cast())
    }

    fn extension(&self, id: &[u8]) -> Option<*const c_void> {
        fn at<T>(table: Option<&T>) -> Option<*const c_void> {
            table.map(|table| from_ref(table).cast())
        }
        let ForEvaluator { score, generate, held_out } = &self.for_evaluator;
        match id {
            _ if id == RNG.to_bytes() => at(Some(&rng::TABLE.0)),
            _ if id == KERNELS.to_bytes() => self.kernels(),
            _ if id == DEVICE_KERNELS.to_bytes() => self.device(),
            _ if id == SCORE.to_bytes() => at(score.as_ref()),
            _ if id == GENERATE.to_bytes() => at(generate.as_ref()),
            _ if id == HELD_OUT.to_bytes() => at(held_out.as_ref()),
            _ => None,
        }
    }
}

/// A number of the header as what it stands for.
pub(crate) fn level_of(number: u32) -> Level {
    match number {
        log_level::DEBUG => Level::Debug,
        log_level::INFO => Level::Info,
        log_level::WARNING => Level::Warning,
        _ => Level::Error,
    }
}

/// # Safety
/// `host` is null or the table of a [`Host`].
unsafe fn host<'a>(host: *const forgelm_host) -> Option<&'a Host> {
    // SAFETY: the table is the first field.
    unsafe { host.cast::<Host>().as_ref() }
}

unsafe extern "C" fn get_extension(table: *const forgelm_host, id: *const c_char) -> *const c_void {
    // SAFETY: plugins hand back the table that they were given.
    let Some(host) = (unsafe { host(table) }) else { return null() };
    if id.is_null() {
        return null();
    }
    // SAFETY: not null; the header asks for a text that ends with NUL.
    let id = unsafe { CStr::from_ptr(id) };
    // Nothing of ours may unwind into a plugin.
    let found = catch_unwind(AssertUnwindSafe(|| host.extension(id.to_bytes())));
    found.ok().flatten().unwrap_or_else(null)
}

unsafe extern "C" fn log(
    table: *const forgelm_host,
    level: u32,
    target: forgelm_str,
    message: forgelm_str,
) {
    // SAFETY: plugins hand back the table that they were given.
    let Some(host) = (unsafe { host(table) }) else { return };
    // SAFETY: texts are readable during the call.
    let (target, message) = unsafe { (lossy(target), lossy(message)) };
    let level = level_of(level);
    host.life.sign();
    // Nothing of ours may unwind into a plugin.
    let _ = catch_unwind(AssertUnwindSafe(|| (host.services.log)(level, &target, &message)));
}

unsafe extern "C" fn is_cancelled(table: *const forgelm_host) -> u32 {
    // SAFETY: plugins hand back the table that they were given.
    let host = unsafe { host(table) };
    u32::from(host.is_some_and(|host| (host.services.stop)()))
}

unsafe extern "C" fn progress(table: *const forgelm_host, event_json: forgelm_str) -> u32 {
    // SAFETY: plugins hand back the table that they were given.
    let Some(host) = (unsafe { host(table) }) else { return 0 };
    // SAFETY: the text is readable during the call.
    let event = unsafe { lossy(event_json) };
    host.life.sign();
    let _ = catch_unwind(AssertUnwindSafe(|| (host.services.progress)(&event)));
    u32::from((host.services.stop)())
}
