//! What the factories of all kinds have in common: descriptors that are read once, and instances.

use crate::border::{Caller, check_features, created, kept_text, table};
use crate::error::Problem;
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_collective_descriptor, forgelm_collective_factory, forgelm_evaluator_descriptor,
    forgelm_evaluator_factory, forgelm_merge_method_descriptor, forgelm_merge_method_factory,
    forgelm_plugin_error, forgelm_quantizer_descriptor, forgelm_quantizer_factory,
    forgelm_reward_descriptor, forgelm_reward_factory, forgelm_status, forgelm_str,
    forgelm_trainer_descriptor, forgelm_trainer_factory,
};
use forgelm_plugin::{Kind, Origin, Plugin};
use forgelm_sdk::options::to_json;
use forgelm_sdk::{OptionValue, OptionsError};
use std::ffi::{c_char, c_void};
use std::ptr::null;
use std::sync::Arc;

/// A factory of one kind, as the header has it.
pub(crate) trait Factory: Sized + 'static {
    /// Its descriptors.
    type Descriptor: 'static;
    /// As messages call the kind.
    const WORD: &'static str;
    /// The names of the two tables.
    const TABLES: [&'static str; 2];

    fn count(&self) -> Option<unsafe extern "C" fn(*const Self) -> u32>;
    fn descriptor(
        &self,
    ) -> Option<unsafe extern "C" fn(*const Self, u32) -> *const Self::Descriptor>;
    fn has_create(&self) -> bool;
    fn texts(descriptor: &Self::Descriptor) -> Texts;
}

/// What every descriptor says.
pub(crate) struct Texts {
    name: *const c_char,
    summary: *const c_char,
    source: *const c_char,
    features: *const *const c_char,
}

macro_rules! factory {
    ($factory:ident, $descriptor:ident, $word:literal) => {
        impl Factory for $factory {
            type Descriptor = $descriptor;
            const WORD: &'static str = $word;
            const TABLES: [&'static str; 2] = [stringify!($factory), stringify!($descriptor)];

            fn count(&self) -> Option<unsafe extern "C" fn(*const Self) -> u32> {
                self.count
            }

            fn descriptor(
                &self,
            ) -> Option<unsafe extern "C" fn(*const Self, u32) -> *const Self::Descriptor> {
                self.descriptor
            }

            fn has_create(&self) -> bool {
                self.create.is_some()
            }

            fn texts(found: &Self::Descriptor) -> Texts {
                let $descriptor { name, summary, source, features, .. } = *found;
                Texts { name, summary, source, features }
            }
        }
    };
}

factory!(forgelm_trainer_factory, forgelm_trainer_descriptor, "trainer");
factory!(forgelm_merge_method_factory, forgelm_merge_method_descriptor, "merge method");
factory!(forgelm_quantizer_factory, forgelm_quantizer_descriptor, "quantizer");
factory!(forgelm_evaluator_factory, forgelm_evaluator_descriptor, "evaluator");
factory!(forgelm_reward_factory, forgelm_reward_descriptor, "reward");
factory!(forgelm_collective_factory, forgelm_collective_descriptor, "collective");

/// One plugin of a factory.
pub(crate) struct Offer<F: Factory> {
    pub(crate) factory: &'static F,
    pub(crate) index: u32,
    pub(crate) host: &'static Host,
    pub(crate) caller: Caller,
}

/// The plugins behind a factory; none if it is null. `read` says what a descriptor of this kind needs,
/// and how an instance is made.
pub(crate) fn offers<F: Factory, K: Kind>(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
    read: impl Fn(&F::Descriptor, Offer<F>) -> Result<(K::Needs, Arc<K::Build>), Problem>,
) -> Result<Vec<Plugin<K>>, Problem> {
    if factory.is_null() {
        return Ok(Vec::new());
    }
    let place = || format!("the {} factory", F::WORD);
    // SAFETY: the table of this id, a constant of a library that stays.
    let factory: &'static F = unsafe { table(factory.cast(), F::TABLES[0], place) }?;
    let missing = |what: &str| Problem::Null { what: format!("{}.{what}", F::TABLES[0]) };
    let count = factory.count().ok_or_else(|| missing("count"))?;
    let descriptor = factory.descriptor().ok_or_else(|| missing("descriptor"))?;
    if !factory.has_create() {
        return Err(missing("create"));
    }
    let _mode = KeepFloatMode::new();
    // SAFETY: the plugin's own functions with its own table.
    let n = unsafe { count(factory) };
    let plugin = |index| {
        // SAFETY: as above.
        let found = unsafe { descriptor(factory, index) };
        let place = || format!("descriptor {index} of the {} factory", F::WORD);
        // SAFETY: a constant of a library that stays.
        let found: &F::Descriptor = unsafe { table(found, F::TABLES[1], place) }?;
        let texts = F::texts(found);
        let of = |field: &str| field_of::<F>(index, field);
        // SAFETY: the texts of a descriptor are constants of the library; so below.
        let name = unsafe { kept_text(texts.name, || of("name")) }?;
        // SAFETY: as above.
        let summary = unsafe { kept_text(texts.summary, || of("summary")) }?;
        // SAFETY: as above.
        let source = unsafe { kept_text(texts.source, || of("source")) }?;
        // SAFETY: as above.
        unsafe { check_features(texts.features, host, || name.to_owned()) }?;
        let caller = Caller::new::<K>(name, origin).watched(host);
        let (needs, build) = read(found, Offer { factory, index, host, caller })?;
        Ok(Plugin { name, summary, source, needs, build, origin: Arc::clone(origin) })
    };
    (0..n).map(plugin).collect()
}

fn field_of<F: Factory>(index: u32, field: &str) -> String {
    format!("{} {index}: {field}", F::WORD)
}

impl<F: Factory> Offer<F> {
    /// A field of its descriptor, for messages.
    pub(crate) fn field(&self, field: &str) -> String {
        field_of::<F>(self.index, field)
    }

    /// An instance with these options: what `create` hands out, checked. `missing` names a function
    /// that it must have and has not.
    pub(crate) fn create<I>(
        &self,
        options: &[(&str, OptionValue)],
        name: &'static str,
        missing: impl Fn(&I) -> Option<&'static str>,
        create: impl FnOnce(
            forgelm_str,
            *mut *const I,
            *mut forgelm_plugin_error,
        ) -> Option<forgelm_status>,
    ) -> Result<*const I, OptionsError> {
        let options = to_json(options)?;
        let (mut instance, mut err) = (null(), forgelm_plugin_error::new());
        let ended = {
            let _inside = self.caller.enter();
            let _mode = KeepFloatMode::new();
            create(forgelm_str::new(&options), &raw mut instance, &raw mut err)
        };
        let Some(ended) = ended else {
            return Err(OptionsError::Refused { message: "`create` is NULL".to_owned() });
        };
        // SAFETY: null or an instance, which is ours until `destroy`.
        unsafe { created(&self.caller, (ended, &err), instance, name, missing) }
    }
}
