//! The machine stops, the disk fails, the disk is full: at every operation, nothing half-written
//! is ever seen under a final name.

#![expect(clippy::unwrap_used, reason = "a test")]

use forgelm_artifact::disk::{Disk, PowerLoss};
use forgelm_artifact::write::{
    AppendLog, StagedDir, WriteError, atomic_on, remove_dir_on, remove_leftovers,
};
use forgelm_artifact::{Class, FixedClock, UtcTime};
use std::io;
use std::path::Path;

const OLD: &[u8] = b"the old contents";
const NEW: &[u8] = b"the new contents, which are longer than the old ones";

/// What a reader finds under a name: `None`, or the files of the folder in one text.
fn folder_text(path: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
    path.is_dir().then(|| format!("{}|{}", read("a"), read("sub/b")))
}

fn write_folder(
    disk: &Disk,
    path: &Path,
    a: &str,
    b: &str,
    replace: bool,
) -> Result<(), WriteError> {
    let mut staged = StagedDir::new_on(disk, path)?;
    staged.write("a", a.as_bytes())?;
    staged.write("sub/b", b.as_bytes())?;
    if replace { staged.commit_replacing() } else { staged.commit() }
}

/// Runs `work` with a stop at its first, second, … operation until it gets through, each time in
/// a fresh folder that `prepare` filled, and then lets `check` look at what is left.
fn stop_everywhere(
    prepare: impl Fn(&Path),
    work: impl Fn(&Disk, &Path) -> Result<(), WriteError>,
    check: impl Fn(&Path, bool),
) -> u64 {
    for n in 0.. {
        for loss in [None, Some(PowerLoss::RenamesKept), Some(PowerLoss::RenamesUndone)] {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path());
            let disk = Disk::stopping_at(n);
            let result = work(&disk, dir.path());
            assert_eq!(result.is_err(), disk.has_stopped(), "operation {n}: {result:?}");
            if let Some(loss) = loss {
                disk.lose_power(loss).unwrap();
            }
            check(dir.path(), result.is_ok());
            remove_leftovers(dir.path()).unwrap();
            check(dir.path(), result.is_ok());
            if !disk.has_stopped() && loss == Some(PowerLoss::RenamesUndone) {
                return n;
            }
        }
    }
    unreachable!("the loop has no end")
}

#[test]
fn fault_077_a_file_is_old_or_new_wherever_the_machine_stops() {
    let n_ops = stop_everywhere(
        |dir| atomic_on(&Disk::real(), &dir.join("f"), OLD).unwrap(),
        |disk, dir| atomic_on(disk, &dir.join("f"), NEW),
        |dir, is_done| {
            let found = std::fs::read(dir.join("f")).unwrap();
            assert!(found == NEW || (!is_done && found == OLD), "{found:?}");
        },
    );
    assert_eq!(n_ops, 5, "create, write, sync, rename, sync of the folder");
}

#[test]
fn fault_077_a_folder_is_whole_or_absent_wherever_the_machine_stops() {
    let n_ops = stop_everywhere(
        |_| {},
        |disk, dir| write_folder(disk, &dir.join("out/checkpoint-1"), "x", "y", false),
        |dir, is_done| match folder_text(&dir.join("out/checkpoint-1")) {
            Some(text) => assert_eq!(text, "x|y"),
            None => assert!(!is_done),
        },
    );
    assert!(n_ops > 10, "{n_ops}");
}

#[test]
fn fault_077_a_replaced_folder_is_old_or_new_wherever_the_machine_stops() {
    stop_everywhere(
        |dir| write_folder(&Disk::real(), &dir.join("m"), "old", "old", false).unwrap(),
        |disk, dir| write_folder(disk, &dir.join("m"), "new", "new", true),
        |dir, is_done| {
            let text = folder_text(&dir.join("m")).unwrap();
            assert!(text == "new|new" || (!is_done && text == "old|old"), "{text}");
        },
    );
}

#[test]
fn fault_078_a_power_cut_after_the_rename_keeps_the_bytes() {
    // Stopped right before the last operation, the sync of the folder: the rename may or may not
    // have reached the disk, but the bytes have.
    for (loss, expected) in [(PowerLoss::RenamesKept, NEW), (PowerLoss::RenamesUndone, OLD)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        atomic_on(&Disk::real(), &path, OLD).unwrap();
        let disk = Disk::stopping_at(4);
        assert!(atomic_on(&disk, &path, NEW).is_err());
        disk.lose_power(loss).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}

#[test]
fn fault_079_a_full_disk_leaves_nothing_half_visible() {
    for room in 0..=NEW.len() as u64 {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("f"), dir.path().join("checkpoint-2"));
        atomic_on(&Disk::real(), &file, OLD).unwrap();
        let is_room = room == NEW.len() as u64;
        let written = atomic_on(&Disk::full_after(room), &file, NEW);
        assert_eq!(written.is_ok(), is_room);
        assert_eq!(std::fs::read(&file).unwrap(), if is_room { NEW } else { OLD });
        if let Err(error) = written {
            assert_eq!(error.class(), Class::Resources);
            let text = error.to_string();
            assert!(text.contains("no room is left (") && text.contains("bytes free"), "{text}");
        }
        let disk = Disk::full_after(room / 8);
        let written = write_folder(&disk, &folder, "1234", "5678", false);
        assert_eq!(written.is_ok(), folder.exists());
        // The disk still works for removing: nothing temporary stays either.
        let n_left = 1 + usize::from(folder.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), n_left);
    }
}

#[test]
fn fault_080_a_failed_sync_is_an_error_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    atomic_on(&Disk::real(), &path, OLD).unwrap();
    let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
    for kind in kinds {
        for n in 0..4 {
            let error = atomic_on(&Disk::failing_at(n, kind), &path, NEW).unwrap_err();
            assert_eq!(error.class(), Class::Runtime);
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), OLD);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
    let sync = atomic_on(&Disk::failing_at(2, io::ErrorKind::Other), &path, NEW).unwrap_err();
    assert!(sync.to_string().contains("not trusted"), "{sync}");
    let quota = Disk::failing_at(1, io::ErrorKind::QuotaExceeded);
    assert_eq!(atomic_on(&quota, &path, NEW).unwrap_err().class(), Class::Resources);
}

#[test]
fn a_removed_folder_is_never_half_there() {
    stop_everywhere(
        |dir| write_folder(&Disk::real(), &dir.join("c"), "x", "y", false).unwrap(),
        |disk, dir| remove_dir_on(disk, &dir.join("c")),
        |dir, is_done| {
            let found = folder_text(&dir.join("c"));
            assert!(found.is_none() || (!is_done && found.as_deref() == Some("x|y")), "{found:?}");
        },
    );
}

#[test]
fn a_commit_never_replaces_and_names_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    write_folder(&Disk::real(), &path, "1", "2", false).unwrap();
    let again = write_folder(&Disk::real(), &path, "3", "4", false);
    assert!(matches!(again, Err(WriteError::Exists { .. })), "{again:?}");
    assert_eq!(folder_text(&path).unwrap(), "1|2");
    let mut staged = StagedDir::new(&dir.path().join("d")).unwrap();
    for name in ["", "../x", "/x", "a/../../x", ".", "a/"] {
        let error = staged.write(name, b"").unwrap_err();
        assert!(matches!(error, WriteError::BadName { .. }), "{name}: {error}");
    }
    drop(staged);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn fault_093_ten_writers_append_without_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::thread::scope(|scope| {
        for writer in 0..10 {
            let path = &path;
            scope.spawn(move || {
                for n in 0..20 {
                    let line = format!("{writer} {n} {}", "x".repeat(writer * 100));
                    forgelm_artifact::write::append_line_durable(path, &line).unwrap();
                }
            });
        }
    });
    let text = std::fs::read_to_string(&path).unwrap();
    for writer in 0..10 {
        let tail = "x".repeat(writer * 100);
        let expected: Vec<String> = (0..20).map(|n| format!("{writer} {n} {tail}")).collect();
        let prefix = format!("{writer} ");
        let found: Vec<&str> = text.lines().filter(|line| line.starts_with(&prefix)).collect();
        assert_eq!(found, expected, "writer {writer}");
    }
}

#[test]
fn fault_095_half_a_line_is_reported_and_recovered_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    AppendLog::open(&path).unwrap().append_line("one").unwrap();
    // Operations: open, write, sync. Stopped in the write, half of the line is in the file.
    let mut log = AppendLog::open_on(&Disk::stopping_at(1), &path).unwrap();
    assert!(log.append_line("two, torn").is_err());
    drop(log);
    let error = AppendLog::open(&path).unwrap_err();
    assert!(matches!(error, WriteError::TornLine { offset: 4, .. }), "{error}");
    assert_eq!(error.class(), Class::Integrity);
    let (mut log, torn) = AppendLog::recover(&Disk::real(), &path).unwrap();
    assert_eq!(torn, b"two, ");
    log.append_line("recovered").unwrap();
    assert_eq!(log.last_line().unwrap().as_deref(), Some(&b"recovered"[..]));
    drop(log);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nrecovered\n");
}

#[test]
fn fault_096_a_line_that_does_not_fit_leaves_the_log_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    AppendLog::open(&path).unwrap().append_line("one").unwrap();
    let mut log = AppendLog::open_on(&Disk::full_after(5), &path).unwrap();
    assert_eq!(log.append_line("two and more").unwrap_err().class(), Class::Resources);
    assert!(log.append_line("a\nb").is_err());
    assert_eq!(log.last_line().unwrap().as_deref(), Some(&b"one"[..]));
    drop(log);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
}

#[test]
fn the_last_line_is_found_behind_windows_and_blank_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut log = AppendLog::open(&path).unwrap();
    assert_eq!(log.last_line().unwrap(), None);
    log.append_line("").unwrap();
    assert_eq!(log.last_line().unwrap(), None);
    for n in [1, 4095, 4096, 5000, 20_000] {
        let line = "y".repeat(n);
        log.append_line(&line).unwrap();
        log.append_line("  ").unwrap();
        assert_eq!(log.last_line().unwrap(), Some(line.into_bytes()));
    }
}

#[test]
fn fault_083_the_second_run_in_a_folder_is_told_who_is_there() {
    use forgelm_artifact::lock::{LOCK_FILE, LockError, RunLock};
    let dir = tempfile::tempdir().unwrap();
    let now = UtcTime(1_767_225_600_000_000);
    assert_eq!(forgelm_artifact::Clock::utc(&FixedClock(now)), now);
    let held = RunLock::acquire(dir.path(), "fg-0123456789ab", now).unwrap();
    let error = RunLock::acquire(dir.path(), "fg-second", now).unwrap_err();
    assert_eq!(error.class(), Class::Input);
    let text = error.to_string();
    let pid = format!("process {} on ", std::process::id());
    for part in ["fg-0123456789ab", &pid, "since \"2026-01-01T00:00:00.000000+00:00\"", "hint:"] {
        assert!(text.contains(part), "{text}: lacks {part}");
    }
    drop(held);
    // A lock file that a dead process left locks nothing, whatever is in it.
    let file = dir.path().join(LOCK_FILE);
    assert!(file.exists());
    atomic_on(&Disk::real(), &file, b"{\"pid\": 1, torn").unwrap();
    let held = RunLock::acquire(dir.path(), "fg-third", now).unwrap();
    let LockError::Held { owner, .. } = RunLock::acquire(dir.path(), "x", now).unwrap_err() else {
        panic!("expected Held");
    };
    assert_eq!(owner.unwrap().name, "fg-third");
    drop(held);
    // A link in place of the lock file is not followed.
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &file).unwrap();
    assert!(matches!(RunLock::acquire(dir.path(), "x", now), Err(LockError::Io { .. })));
    assert!(!dir.path().join("elsewhere").exists());
}
