//! NVIDIA's driver, its libraries, and each device: its facts, and whether it counts right.

use super::machine::gib;
use super::{Check, World};
use crate::fit_check::qlora_largest;
use forgelm_kernels_cuda::{
    AttentionUnfit, Availability, CuDnnUnused, CudaError, Device, DeviceOptions, Found, Libraries,
    NcclUnused, SelfTest, Trial, TrialOutcome, self_test,
};
use serde_json::{Value, json};

/// What is done where a device cannot be used.
const ON_PROCESSOR: &str = "`training.device: cpu` computes on the processor meanwhile";

/// The driver; where there is one, its libraries and devices.
pub(super) fn devices(world: &World<'_>) -> Vec<Check> {
    let name = "cuda.runtime";
    let libraries = Libraries::find(&world.env.cuda_folders);
    let availability = libraries.availability();
    let driver = json!(libraries.driver.to_string());
    let n_devices = match &availability {
        Availability::Usable { n_devices, driver_version } => {
            let mut checks = vec![
                Check::pass(name, format!("{availability}; driver {}", libraries.driver))
                    .with("driver", driver)
                    .with("driver_version", *driver_version)
                    .with("n_devices", *n_devices),
            ];
            checks.extend(each(world, &libraries, *n_devices));
            return checks;
        }
        Availability::NoDriver | Availability::NoDevice => 0,
        Availability::Failed(_) => {
            let check = Check::fail(name, availability.to_string()).hint(format!(
                "`nvidia-smi` says more; after an update of the driver, restart; {ON_PROCESSOR}"
            ));
            return vec![check.with("driver", driver)];
        }
    };
    let check = Check::warn(name, format!("{availability}: the processor computes"));
    vec![check.with("driver", driver).with("n_devices", n_devices)]
}

/// Every device, then the libraries: what they can do is tried on the first device.
fn each(world: &World<'_>, libraries: &Libraries, n_devices: usize) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut first = None;
    for ordinal in 0..n_devices {
        let (own_attention, no_nccl) = (world.env.own_attention, world.env.no_nccl);
        let options = DeviceOptions { own_attention, no_nccl, ..DeviceOptions::default() };
        match Device::open(ordinal, libraries, options) {
            Ok(device) => {
                checks.push(examined(ordinal, &device));
                first.get_or_insert(device);
            }
            Err(error) => checks.push(not_opened(ordinal, &error)),
        }
    }
    if let Some(device) = first {
        checks.extend([cublaslt(libraries, &device), nvrtc(libraries, &device)]);
        checks.extend([cudnn(libraries, &device), nccl(libraries, &device)]);
    }
    checks
}

fn not_opened(ordinal: usize, error: &CudaError) -> Check {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let detail = format!("{error}{}", cause.unwrap_or_default());
    Check::fail(&format!("gpu.{ordinal}"), detail).hint(ON_PROCESSOR).with("index", ordinal)
}

/// What a device is, and whether a small product on it is right.
fn examined(ordinal: usize, device: &std::sync::Arc<Device>) -> Check {
    let name = format!("gpu.{ordinal}");
    let facts = device.facts();
    let free = device.pool().free_bytes();
    let SelfTest { trials, code } = self_test(device);
    let (major, minor) = facts.capability;
    let total = facts.memory_bytes as u64;
    let total_mib = u32::try_from(total >> 20).unwrap_or(u32::MAX);
    let free_shown = free.as_ref().map_or("unknown".to_owned(), |free| gib(*free as u64));
    let code = code.map(|code| code.to_string());
    let what = format!(
        "{}, compute capability {major}.{minor}, {free_shown} of {} free",
        facts.name,
        gib(total)
    );
    let bad: Vec<String> =
        trials.iter().filter(|trial| is_bad(trial)).map(Trial::to_string).collect();
    let check = if bad.is_empty() {
        let n_right = trials.iter().filter(|trial| trial.outcome == TrialOutcome::Right).count();
        let kernels = code.as_deref().unwrap_or("unknown");
        let detail = format!("{what}; kernels: {kernels}; {n_right} products tried, all right");
        Check::pass(&name, detail)
    } else {
        let hint = format!(
            "do not train on this device: its driver, its memory or a library is at fault \
             (`nvidia-smi -q -d ECC` counts errors of memory); {ON_PROCESSOR}"
        );
        Check::fail(&name, format!("{what}; {}", bad.join("; "))).hint(hint)
    };
    let largest = free.as_ref().ok().and_then(|free| qlora_largest(*free as u64, 0));
    check
        .with("index", ordinal)
        .with("name", facts.name.clone())
        .with("capability", format!("{major}.{minor}"))
        .with("vram_bytes", total)
        .with("vram_gib", f64::from(total_mib) / 1024.0)
        .with("free_bytes", free.ok().map(|free| free as u64))
        .with("kernels", code)
        .with("products", trials.iter().map(product).collect::<Vec<_>>())
        .with("qlora_largest", largest)
}

fn is_bad(trial: &Trial) -> bool {
    match trial.outcome {
        TrialOutcome::Right | TrialOutcome::NotOffered => false,
        TrialOutcome::Wrong { .. } | TrialOutcome::Failed(_) => true,
    }
}

fn product(trial: &Trial) -> Value {
    json!({"text": trial.to_string(), "is_right": trial.outcome == TrialOutcome::Right})
}

fn cublaslt(libraries: &Libraries, device: &Device) -> Check {
    let (name, found) = ("cuda.cublaslt", &libraries.cublaslt);
    let check = match (found, device.cublaslt_version()) {
        (Found::Missing, _) => Check::warn(name, "not found: our own kernels form products")
            .hint("install cuBLAS 12, or name its folder in `FORGELM_CUDA_PATH`"),
        (_, Some(version)) => {
            Check::pass(name, format!("{version}, {found}")).with("version", version)
        }
        (_, None) => {
            Check::warn(name, format!("{found}, and does not start: our own kernels form products"))
                .hint("install the cuBLAS of CUDA 12 that fits the driver")
        }
    };
    check.with("place", found.to_string())
}

fn nvrtc(libraries: &Libraries, device: &Device) -> Check {
    let (name, found) = ("cuda.nvrtc", &libraries.nvrtc);
    let check = match (libraries.nvrtc_version(), device.try_compiler()) {
        (Some((major, minor)), Some(Ok(()))) => {
            let detail = format!("{major}.{minor}, {found}; compiles for {}", device.label());
            Check::pass(name, detail).with("version", format!("{major}.{minor}"))
        }
        (_, Some(Err(why))) => Check::warn(
            name,
            format!("{found}, and does not compile for {}: {why}", device.label()),
        )
        .hint("it is needed for devices that came after this release only"),
        (_, None) => Check::warn(
            name,
            "not found: kernels for a device that came after this release \
                                        are left to the driver",
        )
        .hint("install NVRTC 12, or name its folder in `FORGELM_CUDA_PATH`"),
        (None, Some(Ok(()))) => Check::pass(name, format!("{found}; compiles")),
    };
    check.with("place", found.to_string())
}

/// Optional: without it the processes of a run exchange everything through their hosts. What it
/// carries cannot be tried on one device.
fn nccl(libraries: &Libraries, device: &Device) -> Check {
    let (name, found) = ("cuda.nccl", &libraries.nccl);
    let instead = "several processes exchange numbers through the memory of their hosts";
    let check = match device.nccl_version() {
        Err(NcclUnused::Missing) => Check::pass(name, format!("not found: {instead}")),
        Err(why @ NcclUnused::SwitchedOff) => {
            Check::pass(name, format!("{found}; it {why}: {instead}"))
        }
        Err(why @ (NcclUnused::TooOld(_) | NcclUnused::Lacks(_))) => {
            Check::warn(name, format!("{found}; it {why}: {instead}"))
                .hint("install NCCL 2.14 or later of CUDA 12")
        }
        Ok(version) => {
            let detail = format!("{version}, {found}; not tried: that needs two devices");
            Check::pass(name, detail).with("version", version)
        }
    };
    check.with("place", found.to_string())
}

/// Heads on which attention by cuDNN is compared with our own: a quarter of those of a Llama 3.
const TRIED_HEADS: (usize, usize, usize) = (8, 2, 128);

/// Optional: without it our own kernels compute attention.
fn cudnn(libraries: &Libraries, device: &Device) -> Check {
    let (name, found) = ("cuda.cudnn", &libraries.cudnn);
    let (n_heads, n_kv_heads, head_dim) = TRIED_HEADS;
    let instead = "our own kernels compute attention";
    let heads = format!("{n_heads} heads of {head_dim} over {n_kv_heads}");
    let check = match device.cudnn_version() {
        Err(CuDnnUnused::Missing) => Check::pass(name, format!("not found: {instead}")),
        Err(why @ (CuDnnUnused::SwitchedOff | CuDnnUnused::OlderDevice)) => {
            Check::pass(name, format!("{found}; it {why}: {instead}"))
        }
        Err(why) => Check::warn(name, format!("{found}; it {why}: {instead}"))
            .hint("install cuDNN 9.21 or later and cuBLASLt, both of CUDA 12"),
        Ok(version) => match device.try_attention(n_heads, n_kv_heads, head_dim) {
            Ok(()) => {
                let detail = format!("{version}, {found}; forward of {heads} is as our own");
                Check::pass(name, detail)
            }
            Err(AttentionUnfit::NoPlan(why)) => {
                let detail = format!("{version}, {found}; it has no plan for {heads}: {why}");
                Check::pass(name, format!("{detail}: {instead}"))
            }
            Err(AttentionUnfit::Different(why)) => {
                let detail = format!("{version}, {found}; forward of {heads}: {why}: {instead}");
                Check::warn(name, detail).hint("install another version of cuDNN 9")
            }
        }
        .with("version", version),
    };
    check.with("place", found.to_string())
}
