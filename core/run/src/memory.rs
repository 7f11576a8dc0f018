//! How much memory there is and how much is used, as the kernel says it.

use forgelm_kernels_api::Ops;
use memmap2::MmapMut;
use std::path::{Path, PathBuf};

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

/// What limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// What the kernel calls available.
    Machine,
    /// The limit of a control group.
    ControlGroup,
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    DataSegment,
    /// The memory of the device that computes.
    Device,
}

impl Ceiling {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Machine => "the machine",
            Self::ControlGroup => "the control group",
            Self::AddressSpace => "the limit on address space (RLIMIT_AS)",
            Self::DataSegment => "the limit on data (RLIMIT_DATA)",
            Self::Device => "the device",
        }
    }

    /// Whether it counts pages in use rather than addresses: memory that the allocator keeps for
    /// later still counts as used.
    fn counts_pages(self) -> bool {
        matches!(self, Self::Machine | Self::ControlGroup)
    }
}

/// Bytes that can still be had, and what sets the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes left.
    pub bytes: u64,
    /// What there is less of than of anything else.
    pub ceiling: Ceiling,
}

/// Where the numbers come from; a test has folders of its own.
struct Sources {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Sources {
    fn real() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.proc.join(file)).unwrap_or_default()
    }

    /// Everything that limits this process, in no order.
    fn rooms(&self) -> Vec<Room> {
        let mut rooms = Vec::new();
        let mut add = |ceiling, bytes: Option<u64>| {
            rooms.extend(bytes.map(|bytes| Room { bytes, ceiling }));
        };
        add(Ceiling::Machine, kibibytes(&self.read("meminfo"), "MemAvailable:"));
        add(Ceiling::ControlGroup, control_group_room(&self.cgroup, &self.read("self/cgroup")));
        let (limits, status) = (self.read("self/limits"), self.read("self/status"));
        let under = |limit: &str, used: &str| {
            Some(soft_limit(&limits, limit)?.saturating_sub(kibibytes(&status, used)?))
        };
        add(Ceiling::AddressSpace, under("Max address space", "VmSize:"));
        add(Ceiling::DataSegment, under("Max data size", "VmData:"));
        rooms
    }
}

/// Bytes that new allocations can still get: the least of what the machine, the process's control
/// groups and its resource limits leave. `None` where the system does not say.
#[must_use]
pub fn room() -> Option<Room> {
    Sources::real().rooms().into_iter().min_by_key(|room| room.bytes)
}

/// [`room`] where a kernel library works: in the memory of its device, if it has one.
#[must_use]
pub fn room_of(ops: &dyn Ops) -> Option<Room> {
    let on_device = ops.free_memory().map(|bytes| Room { bytes, ceiling: Ceiling::Device });
    on_device.or_else(room)
}

/// The least that the ceilings on pages leave: those that count memory which was given back at once.
#[must_use]
pub fn pages_room() -> Option<u64> {
    let rooms = Sources::real().rooms().into_iter();
    rooms.filter(|room| room.ceiling.counts_pages()).map(|room| room.bytes).min()
}

/// Addresses that are held back from all who allocate, to be there when it is dropped. No page is
/// taken.
///
/// It lies beside the allocator, which may keep for one thread what another one gave back: what it
/// holds free is not there for the stack or the heap of a new thread.
pub struct Reserve {
    _addresses: MmapMut,
}

impl Reserve {
    /// Holds this many bytes back; `None` where the system refuses them.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        let addresses = MmapMut::map_anon(usize::try_from(bytes).ok()?).ok()?;
        Some(Self { _addresses: addresses })
    }
}

/// What must be left outside of the allocator for threads of a step, each of which takes a stack.
const THREADS_BYTES: u64 = 4 << 20;

/// The ceiling under which `bytes` more cannot be had now, of which the allocator already holds
/// `kept` free; `None` when they can.
///
/// Limits on pages are asked by the kernel's counters. Limits on addresses are asked by taking them:
/// from the system, which leaves no trace, else from the allocator, since only it knows what it has
/// left. It may keep for one thread what it takes from the system then (for good, where a heap of a
/// thread grows), so that room for other threads must be left after it was asked.
#[must_use]
pub fn refused(bytes: u64, kept: u64) -> Option<Room> {
    let rooms = Sources::real().rooms();
    let pages = rooms
        .iter()
        .filter(|room| room.ceiling.counts_pages() && room.bytes.saturating_add(kept) < bytes)
        .min_by_key(|room| room.bytes);
    if let Some(room) = pages {
        return Some(*room);
    }
    let can_allocate = || {
        let n = usize::try_from(bytes).unwrap_or(usize::MAX);
        Vec::<u8>::new().try_reserve_exact(n).is_ok()
    };
    let is_left = |bytes| Reserve::of(bytes).is_some();
    if is_left(bytes) || (can_allocate() && is_left(THREADS_BYTES)) {
        return None;
    }
    let addresses = rooms.into_iter().filter(|room| !room.ceiling.counts_pages());
    addresses
        .min_by_key(|room| room.bytes)
        .or(Some(Room { bytes: 0, ceiling: Ceiling::AddressSpace }))
}

/// Limit less use of the process's control groups (version 2, else version 1) and of those around
/// them. File pages that the kernel can drop at once do not count as used.
///
/// `groups` is the text of `/proc/self/cgroup`; a group whose folder cannot be seen, as within a
/// container, is the root of what can be seen.
fn control_group_room(root: &Path, groups: &str) -> Option<u64> {
    let path_of = |controller: &str| {
        let line = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let names = parts.next()?;
            let wanted = if controller.is_empty() {
                names.is_empty()
            } else {
                names.split(',').any(|name| name == controller)
            };
            wanted.then(|| parts.next()).flatten()
        });
        line.unwrap_or("/").trim_start_matches('/').to_owned()
    };
    let least = |root: &Path, path: &str, files: [&str; 2], inactive: &str| {
        let mut dir = root.join(path);
        if path.split('/').any(|part| part == "..") || !dir.join(files[0]).exists() {
            dir = root.to_owned();
        }
        let dirs = dir.ancestors().take_while(|dir| dir.starts_with(root));
        dirs.filter_map(|dir| group_room(dir, files, inactive)).min()
    };
    least(root, &path_of(""), ["memory.max", "memory.current"], "inactive_file ").or_else(|| {
        let files = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
        least(&root.join("memory"), &path_of("memory"), files, "total_inactive_file ")
    })
}

/// Limit less use of one control group.
fn group_room(dir: &Path, [limit, used]: [&str; 2], inactive: &str) -> Option<u64> {
    let text = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let (limit, used) = (number(limit)?, number(used)?);
    let stat = text("memory.stat").unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(inactive)?.parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))))
}

/// The soft limit of a line of `/proc/self/limits`; `None` when there is none.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
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

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
    }

    #[test]
    fn kibibytes_are_read_from_the_right_line() {
        let text = "VmPeak:\t  100 kB\nVmHWM:\t  40 kB\nVmRSS:\t   30 kB\n";
        assert_eq!(kibibytes(text, "VmHWM:"), Some(40 * 1024));
        assert_eq!(kibibytes(text, "VmSwap:"), None);
    }

    #[test]
    fn fault_070_the_limit_of_the_control_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        assert_eq!(control_group_room(root, ""), None, "no group");
        write(root, &[("memory.max", "max\n"), ("memory.current", "300\n")]);
        assert_eq!(control_group_room(root, "0::/\n"), None, "no limit");
        write(root, &[("memory.max", "1000\n")]);
        assert_eq!(control_group_room(root, "0::/\n"), Some(700));
        assert_eq!(control_group_room(root, "0::/../elsewhere\n"), Some(700), "out of sight");
        write(root, &[("memory.stat", "anon 5\ninactive_file 100\n")]);
        assert_eq!(control_group_room(root, "0::/\n"), Some(800), "file pages can be dropped");
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        write(
            root,
            &[
                ("a/memory.max", "500"),
                ("a/memory.current", "400"),
                ("a/b/memory.max", "900"),
                ("a/b/memory.current", "300"),
            ],
        );
        assert_eq!(control_group_room(root, "0::/a/b\n"), Some(100));
        let old = tempfile::tempdir().expect("a folder");
        write(
            old.path(),
            &[
                ("memory/job/memory.limit_in_bytes", "800"),
                ("memory/job/memory.usage_in_bytes", "200"),
            ],
        );
        assert_eq!(control_group_room(old.path(), "3:cpu,memory:/job\n"), Some(600), "version 1");
    }

    #[test]
    fn the_least_of_all_limits_is_the_room() {
        let dir = tempfile::tempdir().expect("a folder");
        write(
            dir.path(),
            &[
                ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  8 kB\n"),
                ("proc/self/status", "VmSize:\t 5 kB\nVmData:\t 2 kB\n"),
                (
                    "proc/self/limits",
                    "Max data size             6144                 unlimited            bytes\n\
                     Max address space         unlimited            unlimited            bytes\n",
                ),
            ],
        );
        let sources = Sources { proc: dir.path().join("proc"), cgroup: dir.path().join("none") };
        let rooms = sources.rooms();
        assert_eq!(
            rooms,
            [
                Room { bytes: 8192, ceiling: Ceiling::Machine },
                Room { bytes: 4096, ceiling: Ceiling::DataSegment },
            ]
        );
    }

    #[test]
    fn more_than_any_machine_has_is_refused() {
        assert!(refused(1 << 60, 0).is_some());
        assert_eq!(refused(1, 1 << 50), None);
    }
}
