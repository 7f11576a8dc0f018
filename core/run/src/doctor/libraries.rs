//! Libraries of plugins: each that a run would load is loaded.

use super::{Check, World};
use crate::event::{Event, Observer};
use crate::plugins::{self, LibraryRecord};
use serde_json::json;

/// Kinds without which something of ours does not work, and what that is.
const KINDS: [(&str, &str); 5] = [
    ("trainer", "nothing can be trained"),
    ("merge_method", "nothing can be merged"),
    ("quantizer", "nothing can be quantized"),
    ("evaluator", "`plugins.evaluators` finds none"),
    ("reward", "`training.trainer_type: grpo` finds none"),
];

/// Loads all of them, and tells of each that cannot be used.
pub(super) fn plugins(world: &World<'_>) -> Vec<Check> {
    let name = "plugins.libraries";
    let (mut plugins, broken) = match plugins::list(None, &[], world.env) {
        Ok(found) => found,
        Err(error) => return vec![Check::failed_by(name, &error)],
    };
    let mut checks: Vec<Check> = broken.iter().map(|error| Check::failed_by(name, error)).collect();
    checks.push(summary(name, plugins.libraries()));
    let mut warnings = Warnings(Vec::new());
    plugins.tell(&mut warnings);
    checks.extend(warnings.0.into_iter().map(|text| Check::warn(name, text)));
    checks
}

fn summary(name: &str, libraries: &[LibraryRecord]) -> Check {
    let is_there = |kind: &str| {
        libraries.iter().any(|library| library.plugins.iter().any(|(of, ..)| *of == kind))
    };
    let missing: Vec<_> = KINDS.iter().filter(|(kind, _)| !is_there(kind)).collect();
    let n_plugins: usize = libraries.iter().map(|library| library.plugins.len()).sum();
    let n = libraries.len();
    let loaded = format!("{n} loaded, {n_plugins} plugins");
    let lacking: Vec<String> =
        missing.iter().map(|(kind, lost)| format!("no {kind}: {lost}")).collect();
    let hint =
        "the libraries that ship with ForgeLM belong beside the program, or into `../lib/forgelm`";
    let check = match missing.first() {
        None => Check::pass(name, loaded),
        Some(("trainer", _)) => {
            Check::fail(name, format!("{loaded}; {}", lacking.join(", "))).hint(hint)
        }
        Some(_) => Check::warn(name, format!("{loaded}; {}", lacking.join(", "))).hint(hint),
    };
    check
        .with("libraries", libraries.iter().map(LibraryRecord::to_json).collect::<Vec<_>>())
        .with("missing_kinds", json!(missing.iter().map(|(kind, _)| kind).collect::<Vec<_>>()))
}

/// What libraries warn of while they are loaded.
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn observe(&mut self, event: &Event) {
        if let Event::Warning(text) = event {
            self.0.push(text.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::environment::tests::nobody;

    #[test]
    fn without_trainers_nothing_works() {
        let dir = tempfile::tempdir().unwrap();
        let env = nobody(dir.path());
        let [check] = &plugins(&World { env: &env, is_offline: true })[..] else {
            panic!("one line")
        };
        assert_eq!(check.status, Status::Fail);
        assert!(check.detail.starts_with("0 loaded, 0 plugins; no trainer:"), "{}", check.detail);
        assert_eq!(check.extras["missing_kinds"].as_array().unwrap().len(), 5);
    }
}
