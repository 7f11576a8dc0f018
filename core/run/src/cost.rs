//! What a run used: time, energy, arithmetic, and what it cost.

use crate::plan::Plan;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// US dollars an hour by the name that a device reports.
pub const PRICES: [(&str, f64); 16] = [
    ("Tesla T4", 0.35),
    ("Tesla P100", 0.45),
    ("Tesla V100", 1.00),
    ("Tesla K80", 0.20),
    ("NVIDIA A10G", 0.75),
    ("NVIDIA A100-SXM4-40GB", 1.50),
    ("NVIDIA A100-SXM4-80GB", 2.00),
    ("NVIDIA A100 80GB PCIe", 2.00),
    ("NVIDIA H100 80GB HBM3", 3.50),
    ("NVIDIA H100 SXM5 80GB", 3.95),
    ("NVIDIA H200", 4.50),
    ("NVIDIA L4", 0.50),
    ("NVIDIA L40S", 1.20),
    ("NVIDIA B200", 5.00),
    ("NVIDIA GeForce RTX 3090", 0.15),
    ("NVIDIA GeForce RTX 4090", 0.20),
];

/// A price and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// US dollars an hour.
    pub usd_per_hour: f64,
    /// `user_config`, `auto_detected` or `fuzzy_match`.
    pub source: &'static str,
}

/// The price of a device: as configured; else of this very name; else of the longest name of the
/// table that has this one in it or is in it, whatever the case. A processor has no name here, and
/// costs nothing unless a price is configured.
#[must_use]
pub fn rate(configured: Option<f64>, device: Option<&str>) -> Option<Rate> {
    if let Some(usd_per_hour) = configured {
        return Some(Rate { usd_per_hour, source: "user_config" });
    }
    let device = device.map(str::trim).filter(|name| !name.is_empty())?;
    if let Some((_, usd_per_hour)) = PRICES.iter().find(|(name, _)| *name == device) {
        return Some(Rate { usd_per_hour: *usd_per_hour, source: "auto_detected" });
    }
    let device = device.to_lowercase();
    let is_like = |name: &str| {
        let name = name.to_lowercase();
        name.contains(&device) || device.contains(&name)
    };
    let like = PRICES.iter().filter(|(name, _)| is_like(name));
    // The first of the longest.
    let best = like.rev().max_by_key(|(name, _)| name.len())?;
    Some(Rate { usd_per_hour: best.1, source: "fuzzy_match" })
}

/// What was counted while training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Wall time of the training loop of this process, in seconds.
    pub wall_seconds: f64,
    /// Processor time of the same, over all threads; `None` where the system does not say.
    pub cpu_seconds: Option<f64>,
    /// Energy of the processor packages, in joules; `None` where it is not measured.
    pub energy_joules: Option<f64>,
}

/// The numbers of a run's report.
#[must_use]
pub fn fields(plan: &Plan, usage: &Usage) -> Map<String, Value> {
    const DEVICES: f64 = 1.0; // a run on processors counts as one
    let rounded = |value: f64, digits: i32| {
        let scale = 10_f64.powi(digits);
        (value * scale).round() / scale
    };
    let hours = usage.wall_seconds / 3600.0 * DEVICES;
    let mut fields = Map::new();
    let mut add = |key: &str, value: Value| {
        fields.insert(key.to_owned(), value);
    };
    add("training_duration_seconds", json!(rounded(usage.wall_seconds, 1)));
    add("gpu_count", json!(0));
    add("gpu_hours", json!(rounded(hours, 3)));
    add("cpu_seconds", json!(usage.cpu_seconds.map(|seconds| rounded(seconds, 3))));
    add(
        "energy_joules",
        usage.energy_joules.map_or(json!("not measured"), |joules| json!(rounded(joules, 0))),
    );
    if let Some(rate) = rate(plan.run.training.gpu_cost_per_hour, None) {
        add("gpu_cost_per_hour_usd", json!(rate.usd_per_hour));
        add("estimated_cost_usd", json!(rounded(hours * rate.usd_per_hour, 4)));
        add("cost_source", json!(rate.source));
    }
    fields
}

/// The energy counters of the processor packages (RAPL), where they can be read: they count
/// everything that runs on the machine.
#[derive(Clone, Debug, Default)]
pub struct EnergyMeter {
    packages: Vec<Package>,
    microjoules: f64,
}

#[derive(Clone, Debug)]
struct Package {
    counter: PathBuf,
    range: u64,
    last: u64,
}

impl EnergyMeter {
    /// A meter that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self::start_in(Path::new("/sys/class/powercap"))
    }

    fn start_in(root: &Path) -> Self {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let mut packages: Vec<Package> =
            entries.filter_map(|entry| Package::open(&entry.path())).collect();
        packages.sort_by(|a, b| a.counter.cmp(&b.counter));
        Self { packages, microjoules: 0.0 }
    }

    /// Takes in what was used since the last time; to be called before a counter wraps around,
    /// which takes minutes.
    #[expect(clippy::cast_precision_loss, reason = "a counter stays far below 2^53")]
    pub fn sample(&mut self) {
        for package in &mut self.packages {
            let Some(now) = number(&package.counter) else { continue };
            let used = if now >= package.last {
                now - package.last
            } else {
                now + package.range.saturating_sub(package.last)
            };
            package.last = now;
            self.microjoules += used as f64;
        }
    }

    /// Joules so far; `None` where nothing can be read.
    #[must_use]
    pub fn joules(&self) -> Option<f64> {
        (!self.packages.is_empty()).then_some(self.microjoules / 1e6)
    }
}

impl Package {
    /// `None` when the folder is no package, or may not be read.
    fn open(dir: &Path) -> Option<Self> {
        let name = std::fs::read_to_string(dir.join("name")).ok()?;
        if !name.starts_with("package") {
            return None;
        }
        let counter = dir.join("energy_uj");
        let last = number(&counter)?;
        let range = number(&dir.join("max_energy_range_uj")).unwrap_or(u64::MAX);
        Some(Self { counter, range, last })
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Seconds between two readings of a clock that may be missing.
#[must_use]
pub fn seconds_between(from: Option<Duration>, to: Option<Duration>) -> Option<f64> {
    Some(to?.saturating_sub(from?).as_secs_f64())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;

    #[test]
    fn prices_are_found_by_config_name_and_likeness() {
        let found = |configured, device| {
            rate(configured, device).map(|rate| (rate.usd_per_hour, rate.source))
        };
        assert_eq!(found(Some(9.0), Some("Tesla T4")), Some((9.0, "user_config")));
        assert_eq!(found(Some(0.0), None), Some((0.0, "user_config")));
        assert_eq!(found(None, Some("Tesla T4")), Some((0.35, "auto_detected")));
        assert_eq!(found(None, Some("NVIDIA H200 NVL")), Some((4.50, "fuzzy_match")));
        assert_eq!(found(None, Some("nvidia l40s")), Some((1.20, "fuzzy_match")), "not the L4");
        assert_eq!(found(None, Some("a100")), Some((1.50, "fuzzy_match")), "the first of equals");
        assert_eq!(found(None, Some("Radeon")), None);
        assert_eq!(found(None, Some("")), None, "an empty name is in every name");
        assert_eq!(found(None, None), None);
        assert_eq!(PRICES.len(), 16);
    }

    #[test]
    fn energy_is_the_sum_of_the_packages_and_survives_a_wrap() {
        let root = tempfile::tempdir().expect("a folder");
        let zone = |name: &str, what: &str, count: &str| {
            let dir = root.path().join(name);
            std::fs::create_dir_all(&dir).expect("made");
            std::fs::write(dir.join("name"), what).expect("written");
            std::fs::write(dir.join("max_energy_range_uj"), "10000000\n").expect("written");
            std::fs::write(dir.join("energy_uj"), count).expect("written");
        };
        assert_eq!(EnergyMeter::start_in(root.path()).joules(), None, "not measured");
        zone("intel-rapl:0", "package-0\n", "9000000\n");
        zone("intel-rapl:1", "package-1\n", "0\n");
        zone("intel-rapl:0:0", "core\n", "0\n");
        let mut meter = EnergyMeter::start_in(root.path());
        zone("intel-rapl:0", "package-0\n", "1000000\n"); // 2 J, around the end
        zone("intel-rapl:1", "package-1\n", "3000000\n"); // 3 J
        zone("intel-rapl:0:0", "core\n", "8000000\n"); // is in its package
        meter.sample();
        meter.sample();
        assert_eq!(meter.joules(), Some(5.0));
    }
}
