//! Opens the device, and says what it is.

use std::process::Command;
use std::sync::Arc;

use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, Found, Libraries};
use serde_json::{Value, json};

use super::Context;
use super::arguments::Arguments;
use super::finding::{Finding, Table};

/// How the emulated device of the tests is called.
const EMULATED: &str = "forgelm emulated device";

/// Who forms products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// cuBLASLt, where it is found.
    Best,
    /// Our own kernels.
    Own,
}

/// A device, and the ops on it.
pub(crate) struct Opened {
    pub device: Arc<Device>,
    pub cuda: Arc<Cuda>,
    is_tiny: bool,
}

impl Opened {
    /// Seconds of one call by the device's clock: the best mean of a few rounds.
    pub(crate) fn time(&self, call: &mut dyn FnMut()) -> Result<f64, String> {
        const ROUND_SECONDS: f64 = 0.02;
        const ROUNDS: usize = 4;
        let mut seconds = |n: usize| {
            let seconds = self.device.seconds(|| (0..n).for_each(|_| call()));
            seconds.map(|s| s / n as f64).map_err(|error| error.to_string())
        };
        let first = seconds(1)?; // loads kernels, takes memory
        if self.is_tiny {
            return Ok(first);
        }
        let once = seconds(1)?;
        let n = (ROUND_SECONDS / once.max(1e-9)).ceil().clamp(1.0, 1000.0) as usize;
        (0..ROUNDS).try_fold(f64::INFINITY, |best, _| Ok(best.min(seconds(n)?)))
    }
}

pub(crate) fn open(arguments: &Arguments, products: Products) -> Result<Opened, String> {
    let mut libraries = find(arguments);
    if products == Products::Own {
        libraries.cublaslt = Found::Missing;
    }
    let options = DeviceOptions { strict: arguments.strict, ..DeviceOptions::default() };
    let device = Device::open(0, &libraries, options).map_err(|error| error.to_string())?;
    let cuda = Arc::new(Cuda::new(Arc::clone(&device), 1));
    Ok(Opened { cuda, device, is_tiny: arguments.tiny })
}

fn find(arguments: &Arguments) -> Libraries {
    let in_python = std::env::var_os("VIRTUAL_ENV").map(Into::into);
    let toolkit = std::env::var_os("CUDA_HOME").map(Into::into);
    let last = in_python.into_iter().chain(toolkit).collect();
    Libraries::find(&Folders { first: arguments.libraries.clone(), last })
}

/// Properties, driver, libraries, clocks.
pub(crate) fn run(context: &Context<'_>) -> Result<Finding, String> {
    let libraries = find(context.arguments);
    let Opened { device, .. } = context.open()?;
    let facts = device.facts();
    let (major, minor) = facts.capability;
    let cuda = facts.driver_version;
    let mut table = Table::new(&["what", "is"]);
    let mut row = |what: &str, is: String| table.row(&[what.to_owned(), is]);
    row("name", facts.name.clone());
    row("compute capability", format!("{major}.{minor}"));
    row("memory", format!("{:.1} GiB", facts.memory_bytes as f64 / f64::from(1 << 30)));
    row("CUDA that the driver knows", format!("{}.{}", cuda / 1000, cuda % 1000 / 10));
    row("cuBLASLt", device.cublaslt_version().unwrap_or_else(|| "not found".to_owned()));
    row("NVRTC", if libraries.nvrtc.is_there() { "found" } else { "not found" }.to_owned());
    row("cuDNN", device.cudnn_version().unwrap_or_else(|why| format!("not used: it {why}")));
    let properties = device.properties();
    for (name, value) in &properties {
        row(&name.replace('_', " "), value.to_string());
    }
    let smi = smi();
    for (name, value) in &smi {
        row(name, value.clone());
    }
    let properties: serde_json::Map<_, _> =
        properties.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let smi_numbers: serde_json::Map<_, _> =
        smi.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut finding = Finding { tables: vec![table], ..Finding::default() };
    if smi.is_empty() {
        finding
            .notes
            .push("`nvidia-smi` was not found: clocks are those that the driver says.".to_owned());
    }
    finding.numbers = json!({
        "name": facts.name,
        "is_emulated": facts.name == EMULATED,
        "capability": [major, minor],
        "memory_bytes": facts.memory_bytes,
        "driver_cuda": cuda,
        "cublaslt": device.cublaslt_version(),
        "properties": Value::Object(properties),
        "nvidia_smi": Value::Object(smi_numbers),
    });
    Ok(finding)
}

/// What `nvidia-smi` says of the first device.
fn smi() -> Vec<(String, String)> {
    const ASKED: [&str; 10] = [
        "driver_version",
        "clocks.current.sm",
        "clocks.max.sm",
        "clocks.current.memory",
        "clocks.max.memory",
        "power.limit",
        "temperature.gpu",
        "ecc.mode.current",
        "mig.mode.current",
        "utilization.gpu",
    ];
    let query = format!("--query-gpu={}", ASKED.join(","));
    let output =
        Command::new("nvidia-smi").args([&query, "--format=csv,noheader", "-i", "0"]).output();
    let Ok(output) = output else { return Vec::new() };
    if !output.status.success() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let values = text.lines().next().unwrap_or_default().split(',');
    ASKED
        .iter()
        .zip(values)
        .map(|(name, value)| ((*name).to_owned(), value.trim().to_owned()))
        .collect()
}
