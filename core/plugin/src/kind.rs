//! The kinds of plugins, and one entry of the registry.

use forgelm_sdk::collective::Collective;
use forgelm_sdk::evaluator::Evaluator;
use forgelm_sdk::merge_method::{self, MergeMethod};
use forgelm_sdk::quantizer::Quantizer;
use forgelm_sdk::reward::Reward;
use forgelm_sdk::trainer::{self, Trainer};
use forgelm_sdk::{OptionValue, OptionsError};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A kind of plugin.
pub trait Kind {
    /// As messages call it.
    const NAME: &'static str;
    /// What the host must prepare for one.
    type Needs: Copy + fmt::Debug;
    /// Makes an instance from its options.
    type Build: ?Sized + Send + Sync;
}

/// Makes an instance from its options alone.
pub type Build<T> = dyn Fn(&[(&str, OptionValue)]) -> Result<Box<T>, OptionsError> + Send + Sync;

/// Objectives.
#[derive(Debug)]
pub enum Trainers {}

/// Ways to make one model of several.
#[derive(Debug)]
pub enum MergeMethods {}

/// Formats of numbers.
#[derive(Debug)]
pub enum Quantizers {}

/// Judges of models.
#[derive(Debug)]
pub enum Evaluators {}

/// Judges of answers.
#[derive(Debug)]
pub enum Rewards {}

/// Ways between the processes of a run.
#[derive(Debug)]
pub enum Collectives {}

impl Kind for Trainers {
    const NAME: &'static str = "trainer";
    type Needs = trainer::Needs;
    type Build = Build<dyn Trainer>;
}

impl Kind for MergeMethods {
    const NAME: &'static str = "merge_method";
    type Needs = merge_method::Needs;
    type Build = dyn Fn(&[(&str, OptionValue)], &[f64]) -> Result<Box<dyn MergeMethod>, OptionsError>
        + Send
        + Sync;
}

impl Kind for Quantizers {
    const NAME: &'static str = "quantizer";
    type Needs = ();
    type Build = Build<dyn Quantizer>;
}

impl Kind for Evaluators {
    const NAME: &'static str = "evaluator";
    type Needs = ();
    type Build = Build<dyn Evaluator>;
}

impl Kind for Rewards {
    const NAME: &'static str = "reward";
    type Needs = ();
    type Build = Build<dyn Reward>;
}

impl Kind for Collectives {
    const NAME: &'static str = "collective";
    type Needs = ();
    type Build = Build<dyn Collective>;
}

/// The library that a plugin came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub library: String,
    /// Its version.
    pub version: String,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the bytes that run, in hexadecimal digits.
    pub sha256: String,
    /// Whether it runs in a process of its own.
    pub is_isolated: bool,
    /// Who signed these bytes, when that key is trusted.
    pub signature: Option<Signature>,
}

/// A signature that was verified, by a key that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Id of the key.
    pub keyid: String,
    /// The key's name in the trust store.
    pub label: Option<String>,
    /// When it was signed, as the signer says.
    pub signed_at: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.library, self.version, self.path.display())
    }
}

/// One plugin.
pub struct Plugin<K: Kind> {
    /// Its name in a config.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where the method was published.
    pub source: &'static str,
    /// What the host must prepare.
    pub needs: K::Needs,
    /// Makes an instance.
    pub build: Arc<K::Build>,
    /// Where it came from.
    pub origin: Arc<Origin>,
}

impl<K: Kind> fmt::Debug for Plugin<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = (self.name, &self.needs, &self.origin);
        f.debug_tuple(K::NAME).field(&needs).finish()
    }
}
