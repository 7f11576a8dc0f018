//! What every plugin of a kind must have, tried on a loaded library: the kit behind
//! `forgelm plugin check`.
//!
//! It builds each plugin without options and calls it with made-up numbers, wherever the library was
//! loaded: in the program, one that crashes ends it.

pub(crate) mod collective;
mod evaluator;
mod merge_method;
pub(crate) mod on_device;
mod quantizer;
mod reward;
mod trainer;

use crate::Library;
use crate::error::{LibraryError, Problem};
use forgelm_plugin::{Kind, Plugin};
use forgelm_sdk::OptionsError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One property of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Kind of plugin.
    pub kind: &'static str,
    /// Its name.
    pub plugin: &'static str,
    /// What was tried, as a sentence that should be true.
    pub property: &'static str,
    /// Whether it is.
    pub outcome: Outcome,
}

/// Whether a property holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It does.
    Holds,
    /// It does not: what was found and what was expected.
    Fails(String),
    /// It could not be tried.
    Untried(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, plugin, property, outcome } = self;
        match outcome {
            Outcome::Holds => write!(f, "ok      {kind} {plugin}: {property}"),
            Outcome::Fails(why) => write!(f, "FAILED  {kind} {plugin}: {property}: {why}"),
            Outcome::Untried(why) => write!(f, "untried {kind} {plugin}: {property}: {why}"),
        }
    }
}

/// What came of tensors of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDevice {
    /// The device, as in a run's evidence; why there is none.
    pub device: Result<String, String>,
    /// One for each plugin that takes such tensors, where there is a device.
    pub findings: Vec<Finding>,
}

/// Tries every plugin of a library.
#[must_use]
pub fn check(library: &Library) -> Vec<Finding> {
    let offers = &library.offers;
    let mut found = Vec::new();
    offers.trainers.iter().for_each(|plugin| trainer::check(plugin, &mut found));
    offers.merge_methods.iter().for_each(|plugin| merge_method::check(plugin, &mut found));
    offers.quantizers.iter().for_each(|plugin| quantizer::check(plugin, &mut found));
    offers.evaluators.iter().for_each(|plugin| evaluator::check(plugin, &mut found));
    offers.rewards.iter().for_each(|plugin| reward::check(plugin, &mut found));
    let worker = library.worker.as_ref();
    let collectives = offers.collectives.iter().enumerate();
    collectives.for_each(|numbered| collective::check(numbered, worker, &mut found));
    found
}

/// What is wrong with plugins of a library where the host has no kernels, which they may ask for: one
/// finding each. `before` is what [`check`] found with kernels, `without` the library loaded where there
/// are none. One that is refused then says what it needs, as it should.
#[must_use]
pub fn check_without_kernels(
    before: &[Finding],
    without: Result<Option<Library>, LibraryError>,
) -> Vec<Finding> {
    let mut named: Vec<_> = before.iter().map(|finding| (finding.kind, finding.plugin)).collect();
    named.dedup();
    let (after, died) = match without {
        Ok(library) => (library.as_ref().map(check).unwrap_or_default(), None),
        Err(LibraryError { problem: Problem::Died(why), .. }) => (Vec::new(), Some(why)),
        Err(_) => (Vec::new(), None),
    };
    let outcome = |(kind, plugin)| {
        let held = |property| {
            before.iter().any(|finding| {
                (finding.kind, finding.plugin, finding.property) == (kind, plugin, property)
                    && finding.outcome == Outcome::Holds
            })
        };
        let of_plugin = after.iter().filter(|found| (found.kind, found.plugin) == (kind, plugin));
        let fails =
            of_plugin.filter(|found| held(found.property)).find_map(|found| match &found.outcome {
                Outcome::Fails(why) => Some(format!("{}: {why}", found.property)),
                Outcome::Holds | Outcome::Untried(_) => None,
            });
        match died.clone().or(fails) {
            None => Outcome::Holds,
            Some(why) => Outcome::Fails(format!(
                "{why}\n  hint: one that needs them says `needs:forgelm.kernels/1` in its `features`"
            )),
        }
    };
    let finding = |(kind, plugin)| Finding {
        kind,
        plugin,
        property: "does without the host's kernels, or says that it needs them",
        outcome: outcome((kind, plugin)),
    };
    named.into_iter().map(finding).collect()
}

/// Collects the findings of one plugin.
struct Tried<'a, K: Kind> {
    plugin: &'a Plugin<K>,
    found: &'a mut Vec<Finding>,
}

impl<K: Kind> Tried<'_, K> {
    /// A property, with what is wrong if it does not hold.
    fn property(&mut self, property: &'static str, result: Result<(), String>) {
        self.note(property, result.map_or_else(Outcome::Fails, |()| Outcome::Holds));
    }

    fn note(&mut self, property: &'static str, outcome: Outcome) {
        let (kind, plugin) = (K::NAME, self.plugin.name);
        self.found.push(Finding { kind, plugin, property, outcome });
    }

    /// An instance without options, unless it needs some.
    fn built<T>(&mut self, instance: Result<T, OptionsError>) -> Option<T> {
        match instance {
            Ok(instance) => {
                self.note("is made without options", Outcome::Holds);
                Some(instance)
            }
            Err(refused) => {
                let why = refused.to_string();
                let outcome = match refused {
                    OptionsError::Died { .. } => Outcome::Fails(why),
                    _ => Outcome::Untried(why),
                };
                self.note("is made without options", outcome);
                None
            }
        }
    }
}

/// Numbers in -1..1 without a pattern, the same in every run.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let upper = u16::try_from(self.0 >> 16).unwrap_or_default();
        f32::from(upper) / 32_768.0 - 1.0
    }

    fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Nothing, or the two values in words.
fn same<T: PartialEq + fmt::Debug>(found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}; expected {expected:?}")) }
}
