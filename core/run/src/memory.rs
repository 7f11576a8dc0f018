//! How much memory there is and how much is used, as the kernel says it.

use std::path::Path;

/// Memory of this process and of the machine, in bytes. `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Resident now.
    pub resident: Option<u64>,
    /// Most that was resident.
    pub resident_peak: Option<u64>,
}

impl MemoryUse {
    /// As it stands now.
    #[must_use]
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { resident: kibibytes(&status, "VmRSS:"), resident_peak: kibibytes(&status, "VmHWM:") }
    }
}

/// Bytes that a new allocation can still get: what the kernel calls available, or what is left
/// under the process's control group, whichever is less.
#[must_use]
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = kibibytes(&meminfo, "MemAvailable:");
    let group = control_group_room(Path::new("/sys/fs/cgroup"));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (one, other) => one.or(other),
    }
}

/// Limit less use of the control group mounted at `root` (version 2, else version 1).
fn control_group_room(root: &Path) -> Option<u64> {
    let number =
        |file: &str| std::fs::read_to_string(root.join(file)).ok()?.trim().parse::<u64>().ok();
    let pairs = [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ];
    pairs.into_iter().find_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)))
}

/// The number after `key` in a file of `key: N kB` lines, in bytes.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_are_read_from_the_right_line() {
        let text = "VmPeak:\t  100 kB\nVmHWM:\t  40 kB\nVmRSS:\t   30 kB\n";
        assert_eq!(kibibytes(text, "VmHWM:"), Some(40 * 1024));
        assert_eq!(kibibytes(text, "VmSwap:"), None);
    }

    #[test]
    fn the_limit_of_the_control_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(control_group_room(root.path()), None, "no group");
        std::fs::write(root.path().join("memory.max"), "max\n").expect("written");
        std::fs::write(root.path().join("memory.current"), "300\n").expect("written");
        assert_eq!(control_group_room(root.path()), None, "no limit");
        std::fs::write(root.path().join("memory.max"), "1000\n").expect("written");
        assert_eq!(control_group_room(root.path()), Some(700));
    }
}
