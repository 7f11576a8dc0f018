//! The way to models: the hub, or what is kept of it; and `pip`, which fetches wheels.

use super::{Check, World};
use forgelm_hub::reach::{self, HUB};
use forgelm_outbound::destination::Destination;
use serde_json::json;
use std::path::Path;

/// How long the hub may take to answer.
const SECONDS_MAX: u64 = 5;
/// How deep, and how far, the cache is looked through.
const DEPTH_MAX: usize = 4;
const FILES_MAX: usize = 5_000;

/// Whether models can be had: from the hub, or offline from what is kept.
pub(super) fn models(world: &World<'_>) -> Vec<Check> {
    if world.is_offline {
        return vec![offline_cache(&world.env.hub_cache_dir)];
    }
    vec![reachable(world.env.hub_endpoint.as_deref())]
}

fn reachable(endpoint: Option<&str>) -> Check {
    let name = "hf_hub.reachable";
    let shown = match Destination::parse(endpoint.unwrap_or(HUB)) {
        Ok(destination) => destination.to_string(),
        Err(error) => {
            let hint = "unset it, or name a hub as in `https://huggingface.co`";
            return Check::fail(name, format!("`HF_ENDPOINT` {error}")).hint(hint);
        }
    };
    let check = match reach::ask(endpoint, SECONDS_MAX) {
        Ok(status @ 200..300) => {
            Check::pass(name, format!("{shown} answers")).with("http_status", status)
        }
        Ok(status) => Check::warn(name, format!("{shown} answers with status {status}"))
            .hint("it may refuse downloads too: an access token, or another `HF_ENDPOINT`")
            .with("http_status", status),
        Err(why) => Check::warn(name, format!("{shown}: {why}")).hint(
            "models and data on this machine work; `--offline` looks at what is kept of the hub",
        ),
    };
    check.with("endpoint", shown)
}

/// What a walk through the cache found.
#[derive(Debug, Default)]
struct Walk {
    n_files: usize,
    n_bytes: u64,
    n_unreadable: usize,
    is_cut: bool,
}

impl Walk {
    fn through(&mut self, folder: &Path, depth: usize) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            self.n_unreadable += 1;
            return;
        };
        for entry in entries {
            if self.n_files >= FILES_MAX {
                self.is_cut = true;
                return;
            }
            // Links are not followed: those of the cache lead to files that are counted already.
            match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                Ok((path, metadata)) if metadata.is_dir() => match depth {
                    DEPTH_MAX.. => self.is_cut = true,
                    _ => self.through(&path, depth + 1),
                },
                Ok((_, metadata)) if metadata.is_file() => {
                    self.n_files += 1;
                    self.n_bytes += metadata.len();
                }
                Ok(_) => {}
                Err(_) => self.n_unreadable += 1,
            }
        }
    }
}

fn offline_cache(folder: &Path) -> Check {
    let (name, shown) = ("hf_hub.offline_cache", folder.display());
    let hint = "offline, models must lie on this machine: copy them there, or name folders";
    if !folder.exists() {
        return Check::warn(name, format!("`{shown}`: there is no such folder")).hint(hint);
    }
    let mut walk = Walk::default();
    walk.through(folder, 1);
    let n_models = std::fs::read_dir(folder).map_or(0, |entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("models--")).count()
    });
    let Walk { n_files, n_bytes, n_unreadable, is_cut } = walk;
    let more = if is_cut { " at least" } else { "" };
    let found = format!("`{shown}`: {n_models} models, {n_files} files{more}");
    let check = match (n_files, n_unreadable) {
        (0, 0) => Check::warn(name, format!("`{shown}`: is empty")).hint(hint),
        (0, _) => Check::fail(name, format!("`{shown}`: cannot be read")).hint(hint),
        (_, 0) => Check::pass(name, found),
        _ => Check::warn(name, format!("{found}; {n_unreadable} folders or files cannot be read")),
    };
    let of_walk = json!({"n_models": n_models, "n_files": n_files, "n_bytes": n_bytes,
        "n_unreadable": n_unreadable, "is_cut": is_cut});
    check.with("path", json!(folder)).with("found", of_walk)
}

/// The program that fetches wheels.
pub(super) fn pip(_: &World<'_>) -> Vec<Check> {
    let name = "tools.pip";
    let check = match reach::pip_version() {
        Some((command, said)) => {
            let version = said.split_whitespace().nth(1).unwrap_or("of an unknown version");
            Check::pass(name, format!("`{command}`, {version}")).with("command", command)
        }
        None => Check::warn(name, "not found: models named `pypi:NAME==VERSION` cannot be fetched")
            .hint("install pip for Python 3, if they are wanted"),
    };
    vec![check]
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test prepares files")]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use std::fs;

    #[test]
    fn what_is_kept_of_the_hub_is_counted_and_its_absence_told() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("hub");
        assert_eq!(offline_cache(&cache).status, Status::Warn);
        fs::create_dir_all(cache.join("models--a--b/snapshots/c")).unwrap();
        let empty = offline_cache(&cache);
        assert_eq!(empty.status, Status::Warn);
        assert!(empty.detail.ends_with("is empty"), "{}", empty.detail);
        fs::write(cache.join("models--a--b/snapshots/c/config.json"), "{}").unwrap();
        let found = offline_cache(&cache);
        assert_eq!(found.status, Status::Pass);
        assert!(found.detail.ends_with("1 models, 1 files"), "{}", found.detail);
        assert_eq!(found.extras["found"]["n_bytes"], 2);
        fs::create_dir_all(cache.join("models--a--b/snapshots/c/too/deep")).unwrap();
        assert!(offline_cache(&cache).detail.ends_with("files at least"));
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(offline_cache(&file).status, Status::Fail);
    }

    #[test]
    fn an_address_that_is_none_fails_and_is_not_repeated() {
        let check = reachable(Some("ftp://user:pass-word@host"));
        assert_eq!(check.status, Status::Fail);
        assert!(!format!("{check:?}").contains("pass-word"), "{check:?}");
    }
}
