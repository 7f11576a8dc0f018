//! `forgelm doctor`: whether this machine, this user and this program can do a run.
//!
//! Each probe tries the thing itself: a folder is written to, a key signs, a library is loaded, a
//! device forms a product. What was not tried has no line. Nothing of it lasts: a file that is
//! written is taken away again, and no key and no folder is made. Start reading at [`PROBES`].

mod check;
mod devices;
mod folders;
mod hub;
mod identity;
mod libraries;
mod machine;
mod mpi;
mod variables;

pub use check::{Check, Status};

use crate::environment::Environment;
use crate::exit::Exit;
use forgelm_kernels_api::Failure;
use serde_json::{Value, json};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a probe may look at.
struct World<'a> {
    env: &'a Environment,
    is_offline: bool,
}

/// Looks at one thing, or at several of a kind.
type Probe = fn(&World<'_>) -> Vec<Check>;

/// All probes, in the order of their lines. The name stands for a probe that crashes.
const PROBES: [(&str, Probe); 16] = [
    ("forgelm.install", machine::install),
    ("cpu.kernels", machine::processor),
    ("memory.room", machine::memory),
    ("clock.time", machine::clock),
    ("disk.workspace", folders::disk),
    ("folder.workspace", folders::writable),
    ("environment.variables", variables::variables),
    ("operator.identity", identity::operator),
    ("signing.key", identity::signing_key),
    ("signing.trust_store", identity::trust_store),
    ("audit.secret", identity::audit_secret),
    ("plugins.libraries", libraries::plugins),
    ("mpi.launcher", mpi::mpi),
    ("tools.pip", hub::pip),
    ("hf_hub.reachable", hub::models),
    ("cuda.runtime", devices::devices),
];

/// Everything that was looked at.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// One for each line, in order.
    pub checks: Vec<Check>,
}

/// Looks at everything. Offline, nothing is asked of the network.
#[must_use]
pub fn doctor(is_offline: bool, env: &Environment) -> Diagnosis {
    let world = World { env, is_offline: is_offline || env.offline };
    Diagnosis { checks: all(&PROBES, &world) }
}

/// A probe that crashes is a finding, and the others are asked all the same.
fn all(probes: &[(&str, Probe)], world: &World<'_>) -> Vec<Check> {
    let looked = |(name, probe): &(&str, Probe)| {
        catch_unwind(AssertUnwindSafe(|| probe(world)))
            .unwrap_or_else(|payload| vec![Check::crashed(name, &said(payload.as_ref()))])
    };
    probes.iter().flat_map(looked).collect()
}

/// What a panic says.
fn said(payload: &(dyn Any + Send)) -> String {
    if let Some(failure) = payload.downcast_ref::<Failure>() {
        return failure.to_string();
    }
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("no reason was given").to_owned()
}

impl Diagnosis {
    /// How many checks ended so; those that crashed among the failures.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// How many crashed.
    #[must_use]
    pub fn n_crashed(&self) -> usize {
        self.checks.iter().filter(|check| check.is_crashed()).count()
    }

    /// Names of what failed, in order.
    #[must_use]
    pub fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|check| check.status == Status::Fail);
        failed.map(|check| check.name.as_str()).collect()
    }

    /// The exit code: 2 if a probe crashed, 1 if a check failed. A warning is no failure.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match (self.n_crashed(), self.count(Status::Fail)) {
            (0, 0) => Exit::Success,
            (0, _) => Exit::Config,
            _ => Exit::Runtime,
        }
    }

    /// As the document has it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "success": self.exit() == Exit::Success,
            "checks": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
            "summary": {
                "pass": self.count(Status::Pass),
                "warn": self.count(Status::Warn),
                "fail": self.count(Status::Fail),
                "crashed": self.n_crashed(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::tests::nobody;

    fn diagnosis(checks: Vec<Check>) -> Diagnosis {
        Diagnosis { checks }
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst() {
        let (pass, warn) = (Check::pass("a", "x"), Check::warn("b", "x"));
        let (fail, crashed) = (Check::fail("c", "x"), Check::crashed("d", "x"));
        assert_eq!(diagnosis(vec![pass.clone(), warn.clone()]).exit(), Exit::Success);
        assert_eq!(diagnosis(vec![warn, fail.clone()]).exit(), Exit::Config);
        let worst = diagnosis(vec![crashed, fail, pass]);
        assert_eq!(worst.exit(), Exit::Runtime);
        let expected = json!({"pass": 1, "warn": 0, "fail": 2, "crashed": 1});
        assert_eq!(worst.to_json()["summary"], expected);
        assert_eq!(worst.failed(), ["d", "c"]);
    }

    #[test]
    fn a_probe_that_crashes_is_told_and_the_next_one_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let env = nobody(dir.path());
        let world = World { env: &env, is_offline: true };
        let probes: [(&str, Probe); 2] = [
            ("first.thing", |_| panic!("it broke at {}", 7)),
            ("second.thing", |_| vec![Check::pass("second.thing", "fine")]),
        ];
        let checks = all(&probes, &world);
        assert_eq!(checks.len(), 2);
        assert_eq!(checks[0].name, "first.thing");
        assert!(checks[0].is_crashed() && checks[0].detail.contains("it broke at 7"));
        assert_eq!(checks[1], Check::pass("second.thing", "fine"));
    }

    #[test]
    fn names_of_probes_are_distinct() {
        let names: std::collections::BTreeSet<_> = PROBES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 16);
    }
}
