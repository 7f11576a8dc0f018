//! The registry: what each name in a config stands for.
//!
//! It knows kinds and offers, and no plugin by name: the program hands it what the libraries that it
//! loads offer. Start reading at [`Registry`].

mod kind;

pub use kind::{
    Build, Collectives, Evaluators, Kind, MergeMethods, Origin, Plugin, Quantizers, Rewards,
    Signature, Trainers,
};

use std::collections::BTreeMap;

/// Everything that was offered, by kind and name.
///
/// **Invariant:** one name of a kind, one plugin (`two_plugins_with_one_name_are_refused`).
#[derive(Debug, Default)]
pub struct Registry {
    trainers: Shelf<Trainers>,
    merge_methods: Shelf<MergeMethods>,
    quantizers: Shelf<Quantizers>,
    evaluators: Shelf<Evaluators>,
    rewards: Shelf<Rewards>,
    collectives: Shelf<Collectives>,
}

type Shelf<K> = BTreeMap<&'static str, Plugin<K>>;

/// What one library offers.
#[derive(Debug, Default)]
pub struct Offers {
    /// Its trainers.
    pub trainers: Vec<Plugin<Trainers>>,
    /// Its merge methods.
    pub merge_methods: Vec<Plugin<MergeMethods>>,
    /// Its quantizers.
    pub quantizers: Vec<Plugin<Quantizers>>,
    /// Its evaluators.
    pub evaluators: Vec<Plugin<Evaluators>>,
    /// Its rewards.
    pub rewards: Vec<Plugin<Rewards>>,
    /// Its collectives.
    pub collectives: Vec<Plugin<Collectives>>,
}

impl Offers {
    /// Number of plugins of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.trainers.len()
            + self.merge_methods.len()
            + self.quantizers.len()
            + self.evaluators.len()
            + self.rewards.len()
            + self.collectives.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A registry that cannot be built, or a name that it does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two plugins have one name.
    #[error(
        "two {kind} plugins are named `{name}`: one of {first}, one of {second}\n  hint: take one \
         of the libraries away"
    )]
    Duplicate {
        /// Kind of plugin.
        kind: &'static str,
        /// The name.
        name: String,
        /// Where the first is from.
        first: String,
        /// Where the second is from.
        second: String,
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
    /// Adds what a library offers.
    ///
    /// # Errors
    /// If one of the names is taken; the registry is then as before.
    pub fn add(&mut self, offers: Offers) -> Result<(), RegistryError> {
        check(&self.trainers, &offers.trainers)?;
        check(&self.merge_methods, &offers.merge_methods)?;
        check(&self.quantizers, &offers.quantizers)?;
        check(&self.evaluators, &offers.evaluators)?;
        check(&self.rewards, &offers.rewards)?;
        check(&self.collectives, &offers.collectives)?;
        put(&mut self.trainers, offers.trainers);
        put(&mut self.merge_methods, offers.merge_methods);
        put(&mut self.quantizers, offers.quantizers);
        put(&mut self.evaluators, offers.evaluators);
        put(&mut self.rewards, offers.rewards);
        put(&mut self.collectives, offers.collectives);
        Ok(())
    }

    /// The trainer of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn trainer(&self, name: &str) -> Result<&Plugin<Trainers>, RegistryError> {
        find(&self.trainers, name)
    }

    /// The merge method of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn merge_method(&self, name: &str) -> Result<&Plugin<MergeMethods>, RegistryError> {
        find(&self.merge_methods, name)
    }

    /// The quantizer of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn quantizer(&self, name: &str) -> Result<&Plugin<Quantizers>, RegistryError> {
        find(&self.quantizers, name)
    }

    /// The evaluator of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn evaluator(&self, name: &str) -> Result<&Plugin<Evaluators>, RegistryError> {
        find(&self.evaluators, name)
    }

    /// The reward of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn reward(&self, name: &str) -> Result<&Plugin<Rewards>, RegistryError> {
        find(&self.rewards, name)
    }

    /// The collective of this name.
    ///
    /// # Errors
    /// If there is none: the names there are.
    pub fn collective(&self, name: &str) -> Result<&Plugin<Collectives>, RegistryError> {
        find(&self.collectives, name)
    }

    /// Every trainer, sorted by name.
    pub fn trainers(&self) -> impl Iterator<Item = &Plugin<Trainers>> {
        self.trainers.values()
    }

    /// Every merge method, sorted by name.
    pub fn merge_methods(&self) -> impl Iterator<Item = &Plugin<MergeMethods>> {
        self.merge_methods.values()
    }

    /// Every quantizer, sorted by name.
    pub fn quantizers(&self) -> impl Iterator<Item = &Plugin<Quantizers>> {
        self.quantizers.values()
    }

    /// Every evaluator, sorted by name.
    pub fn evaluators(&self) -> impl Iterator<Item = &Plugin<Evaluators>> {
        self.evaluators.values()
    }
}

fn check<K: Kind>(shelf: &Shelf<K>, offers: &[Plugin<K>]) -> Result<(), RegistryError> {
    for (i, plugin) in offers.iter().enumerate() {
        let same = offers[..i].iter().find(|other| other.name == plugin.name);
        if let Some(first) = shelf.get(plugin.name).or(same) {
            return Err(RegistryError::Duplicate {
                kind: K::NAME,
                name: plugin.name.to_owned(),
                first: first.origin.to_string(),
                second: plugin.origin.to_string(),
            });
        }
    }
    Ok(())
}

fn put<K: Kind>(shelf: &mut Shelf<K>, offers: Vec<Plugin<K>>) {
    shelf.extend(offers.into_iter().map(|plugin| (plugin.name, plugin)));
}

fn find<'a, K: Kind>(shelf: &'a Shelf<K>, name: &str) -> Result<&'a Plugin<K>, RegistryError> {
    shelf.get(name).ok_or_else(|| RegistryError::Unknown {
        kind: K::NAME,
        name: name.to_owned(),
        known: match shelf.is_empty() {
            true => "none (those that ship with the program are beside it)".to_owned(),
            false => shelf.keys().copied().collect::<Vec<_>>().join(", "),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_sdk::trainer::{Needs, Records, Trainer};
    use forgelm_sdk::{OptionValue, OptionsError};
    use std::path::PathBuf;
    use std::sync::Arc;

    fn offers(library: &str, names: &[&'static str]) -> Offers {
        let origin = Arc::new(Origin {
            library: library.to_owned(),
            version: "1.2.3".to_owned(),
            path: PathBuf::from(format!("/x/{library}.so")),
            is_isolated: false,
            signature: None,
            sha256: "00".to_owned(),
        });
        let build: Arc<Build<dyn Trainer>> = Arc::new(|_: &[(&str, OptionValue)]| {
            Err(OptionsError::Refused { message: "never built".to_owned() })
        });
        let plugin = |name: &&'static str| Plugin {
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
            build: Arc::clone(&build),
            origin: Arc::clone(&origin),
        };
        Offers { trainers: names.iter().map(plugin).collect(), ..Offers::default() }
    }

    #[test]
    fn two_plugins_with_one_name_are_refused() {
        let mut registry = Registry::default();
        registry.add(offers("one", &["a", "b"])).expect("two names");
        let again = registry.add(offers("two", &["c", "b"])).expect_err("b is taken");
        assert_eq!(
            again.to_string(),
            "two trainer plugins are named `b`: one of one 1.2.3 (/x/one.so), one of two 1.2.3 \
             (/x/two.so)\n  hint: take one of the libraries away"
        );
        assert_eq!(registry.trainers().count(), 2, "nothing of the refused library stays");
        let evaluator = Plugin::<Evaluators> {
            name: "a",
            summary: "a test's",
            source: "none",
            needs: (),
            build: Arc::new(|_: &[(&str, OptionValue)]| unreachable!("never built")),
            origin: Arc::clone(&registry.trainer("a").expect("added").origin),
        };
        let other = Offers { evaluators: vec![evaluator], ..Offers::default() };
        registry.add(other).expect("another kind may have the name");
        let twice = Registry::default().add(offers("three", &["d", "d"]));
        assert!(twice.is_err(), "a library that names one plugin twice");
    }

    #[test]
    fn an_unknown_name_lists_what_is_there() {
        let mut registry = Registry::default();
        registry.add(offers("one", &["sft", "dpo"])).expect("two names");
        let unknown = registry.trainer("ppo").expect_err("no such trainer");
        assert_eq!(unknown.to_string(), "no trainer plugin is named `ppo`; loaded: dpo, sft");
        let unknown = registry.quantizer("nf4").expect_err("no such quantizer");
        let said = "no quantizer plugin is named `nf4`; loaded: none (";
        assert!(unknown.to_string().starts_with(said), "{unknown}");
    }
}
