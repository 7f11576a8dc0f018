//! Folders that runs write to, and the room on their disks.

use super::machine::gib;
use super::{Check, Status, World};
use forgelm_artifact::write;
use serde_json::json;
use std::path::Path;

const GIB: u64 = 1 << 30;
/// Less room than this is too little, ..
const DISK_BYTES_MIN: u64 = 10 * GIB;
/// .. and less than this is soon used up by checkpoints of a large model.
const DISK_BYTES_LOW: u64 = 50 * GIB;

/// Room on the disk of the folder in which the program was started.
pub(super) fn disk(_: &World<'_>) -> Vec<Check> {
    vec![disk_of(write::free_bytes(Path::new(".")))]
}

fn disk_of(free: std::io::Result<u64>) -> Check {
    let name = "disk.workspace";
    let free = match free {
        Ok(free) => free,
        Err(error) => {
            let detail = format!("the system does not say how much room there is: {error}");
            return Check::warn(name, detail).hint("runs cannot refuse what does not fit");
        }
    };
    let detail = format!("{} free for this folder", gib(free));
    let hint = "free some space: models, caches and checkpoints are written";
    let check = match free {
        0..DISK_BYTES_MIN => {
            Check::fail(name, format!("{detail}; expected at least 10 GiB")).hint(hint)
        }
        DISK_BYTES_MIN..DISK_BYTES_LOW => {
            Check::warn(name, format!("{detail}; large models want 50 GiB")).hint(hint)
        }
        DISK_BYTES_LOW.. => Check::pass(name, detail),
    };
    check.with("free_bytes", free)
}

/// Folders that are written to: a file is made in each, and taken away again.
pub(super) fn writable(world: &World<'_>) -> Vec<Check> {
    let env = world.env;
    // What is fetched goes into the caches; offline they are only read.
    let for_fetched = if world.is_offline { Status::Warn } else { Status::Fail };
    let folders = [
        (
            "folder.workspace",
            Path::new("."),
            Status::Fail,
            "start it elsewhere, or name a `training.output_dir`",
        ),
        (
            "folder.cache",
            &env.cache_dir,
            for_fetched,
            "the variable `XDG_CACHE_HOME` names another",
        ),
        (
            "folder.hub_cache",
            &env.hub_cache_dir,
            for_fetched,
            "the variable `HF_HUB_CACHE` names another",
        ),
    ];
    let tried = |(name, folder, worst, hint): (&str, &Path, Status, &str)| {
        let check = match try_folder(folder) {
            Ok(true) => Check::pass(name, format!("`{}`: a file can be written", folder.display())),
            Ok(false) => {
                let detail = format!("`{}`: not there yet, and can be made", folder.display());
                Check::pass(name, detail)
            }
            Err(error) => {
                let detail = format!("`{}`: cannot be written to: {error}", folder.display());
                Check { status: worst, ..Check::fail(name, detail).hint(hint) }
            }
        };
        check.with("path", json!(folder))
    };
    folders.map(tried).into()
}

/// Writes a file into a folder, or, where it is not there yet, into the nearest one above it; then
/// takes it away. Whether the folder itself was there.
pub(super) fn try_folder(folder: &Path) -> Result<bool, String> {
    let place = folder.ancestors().find(|place| place.exists() || place.as_os_str().is_empty());
    let place = place.filter(|place| !place.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !place.is_dir() {
        return Err(format!("`{}` is no folder", place.display()));
    }
    // A name that nobody else has: of this process.
    let file = place.join(format!(".forgelm-doctor-{}", std::process::id()));
    write::atomic(&file, b"forgelm doctor\n").map_err(|error| reason(&error))?;
    write::remove_file(&file).map_err(|error| reason(&error))?;
    Ok(place == folder)
}

/// What the system said, without what was being done.
fn reason(error: &write::WriteError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test prepares files")]
mod tests {
    use super::*;
    use crate::environment::tests::nobody;
    use std::fs;

    #[test]
    fn room_on_the_disk_is_judged_at_ten_and_fifty() {
        let status = |free| disk_of(Ok(free)).status;
        assert_eq!(status(10 * GIB - 1), Status::Fail);
        assert_eq!(status(10 * GIB), Status::Warn);
        assert_eq!(status(50 * GIB - 1), Status::Warn);
        assert_eq!(status(50 * GIB), Status::Pass);
        let unknown = disk_of(Err(std::io::ErrorKind::PermissionDenied.into()));
        assert_eq!(unknown.status, Status::Warn);
    }

    #[test]
    fn a_folder_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(try_folder(dir.path()), Ok(true));
        assert_eq!(try_folder(&dir.path().join("not/there")), Ok(false));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left, nothing is made"
        );
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = try_folder(&file.join("below")).unwrap_err();
        assert!(error.ends_with("file` is no folder"), "{error}");
    }

    #[test]
    fn caches_that_cannot_be_made_fail_where_models_are_fetched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cache"), "a file").unwrap();
        let env = nobody(dir.path());
        let of = |is_offline| {
            let checks = writable(&World { env: &env, is_offline });
            let found = checks.into_iter().find(|check| check.name == "folder.cache");
            found.map(|check| check.status)
        };
        assert_eq!(of(false), Some(Status::Fail));
        assert_eq!(of(true), Some(Status::Warn));
    }
}
