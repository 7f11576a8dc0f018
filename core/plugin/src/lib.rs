//! The registry: what each name in a config stands for.
//!
//! It knows kinds and descriptors, and no plugin by name: the program hands it the lists of the
//! libraries that it links or loads. Start reading at [`Registry`].

use forgelm_sdk::trainer::Descriptor;
use std::collections::BTreeMap;

/// Everything that was offered, by kind and name.
///
/// **Invariant:** one name, one plugin (`two_plugins_with_one_name_are_refused`).
#[derive(Debug, Default)]
pub struct Registry {
    trainers: BTreeMap<&'static str, Descriptor>,
}

/// A registry that cannot be built, or a name that it does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two libraries offer one name.
    #[error("two {kind} plugins are named `{name}`")]
    Duplicate {
        /// Kind of plugin.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// Nothing of that name was offered.
    #[error("no {kind} plugin is named `{name}`; loaded: {known}")]
    Unknown {
        /// Kind of plugin.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are, with commas.
        known: String,
    },
}

impl Registry {
    /// Adds the trainers of one library.
    ///
    /// # Errors
    /// If one of their names is taken; the registry is then as before.
    pub fn add_trainers(&mut self, library: &[Descriptor]) -> Result<(), RegistryError> {
        for (i, descriptor) in library.iter().enumerate() {
            let taken = self.trainers.contains_key(descriptor.name)
                || library[..i].iter().any(|other| other.name == descriptor.name);
            if taken {
                let name = descriptor.name.to_owned();
                return Err(RegistryError::Duplicate { kind: "trainer", name });
            }
        }
        self.trainers.extend(library.iter().map(|descriptor| (descriptor.name, *descriptor)));
        Ok(())
    }

    /// The trainer of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn trainer(&self, name: &str) -> Result<&Descriptor, RegistryError> {
        self.trainers.get(name).ok_or_else(|| RegistryError::Unknown {
            kind: "trainer",
            name: name.to_owned(),
            known: self.trainers.keys().copied().collect::<Vec<_>>().join(", "),
        })
    }

    /// Every trainer, sorted by name.
    pub fn trainers(&self) -> impl Iterator<Item = &Descriptor> {
        self.trainers.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_sdk::trainer::{Needs, Records};

    const fn named(name: &'static str) -> Descriptor {
        Descriptor {
            name,
            summary: "a test's",
            source: "none",
            needs: Needs {
                records: Records::Text,
                reference: false,
                rollouts: false,
                prompts: false,
                dropout: true,
            },
            build: |_| unreachable!("never built"),
        }
    }

    #[test]
    fn two_plugins_with_one_name_are_refused() {
        let mut registry = Registry::default();
        registry.add_trainers(&[named("a"), named("b")]).expect("two names");
        let again = registry.add_trainers(&[named("c"), named("b")]);
        let name = "b".to_owned();
        assert_eq!(again, Err(RegistryError::Duplicate { kind: "trainer", name }));
        assert_eq!(registry.trainers().count(), 2, "nothing of the refused library stays");
        let twice = Registry::default().add_trainers(&[named("d"), named("d")]);
        assert!(twice.is_err(), "a library that names one plugin twice");
    }

    #[test]
    fn an_unknown_name_lists_what_is_there() {
        let mut registry = Registry::default();
        registry.add_trainers(&[named("sft"), named("dpo")]).expect("two names");
        let unknown = registry.trainer("ppo").expect_err("no such trainer");
        assert_eq!(unknown.to_string(), "no trainer plugin is named `ppo`; loaded: dpo, sft");
    }
}
