//! What a config names by hand: a plugin of a library in place of one of ours, and options as
//! `key=value`.

use crate::error::RunError;
use forgelm_config::Run;
use forgelm_plugin::{Kind, Plugin};
use forgelm_sdk::{OptionValue, OptionsError};

/// A plugin that `plugins` may name in place of the one that another section names.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    name: Option<&'a str>,
    options: &'a [String],
    place: Place,
}

/// The keys of a [`Named`].
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Of the name.
    name: &'static str,
    /// Of the options.
    options: &'static str,
    /// What it is, in words.
    kind: &'static str,
    /// The section that has the options of ours.
    ours: &'static str,
}

const TRAINER: Place = Place {
    name: "plugins.trainer",
    options: "plugins.trainer_options",
    kind: "trainer",
    ours: "training",
};

const MERGE_METHOD: Place = Place {
    name: "plugins.merge_method",
    options: "plugins.merge_method_options",
    kind: "merge method",
    ours: "merge",
};

impl<'a> Named<'a> {
    /// The trainer, in place of that of `training.trainer_type`.
    #[must_use]
    pub fn trainer(run: &'a Run) -> Self {
        let section = run.plugins.as_ref();
        Self {
            name: section.and_then(|plugins| plugins.trainer.as_deref()),
            options: section.map_or(&[], |plugins| &plugins.trainer_options),
            place: TRAINER,
        }
    }

    /// The merge method, in place of that of `merge.method`.
    #[must_use]
    pub fn merge_method(run: &'a Run) -> Self {
        let section = run.plugins.as_ref();
        Self {
            name: section.and_then(|plugins| plugins.merge_method.as_deref()),
            options: section.map_or(&[], |plugins| &plugins.merge_method_options),
            place: MERGE_METHOD,
        }
    }

    /// Its name, if there is one.
    #[must_use]
    pub fn name(&self) -> Option<&'a str> {
        self.name
    }

    /// Its options; where none is named, those of ours.
    ///
    /// # Errors
    /// If one is no `key=value`, or is for nobody.
    pub fn options_or(
        &self,
        ours: impl FnOnce() -> Vec<(&'static str, OptionValue)>,
    ) -> Result<Vec<(&'a str, OptionValue)>, RunError> {
        let place = self.place;
        match (self.name, self.options.first()) {
            (Some(_), _) => options(place.options, self.options),
            (None, None) => Ok(ours()),
            (None, Some(given)) => Err(RunError::LooseOption {
                place: place.options,
                given: given.clone(),
                kind: place.kind,
                name: place.name,
                ours: place.ours,
            }),
        }
    }

    /// What became of making it: an error of a plugin that is named says where.
    ///
    /// # Errors
    /// If it refused.
    pub fn made<K: Kind, T>(
        &self,
        plugin: &Plugin<K>,
        made: Result<T, OptionsError>,
    ) -> Result<T, RunError> {
        made.map_err(|source| match self.name {
            None => RunError::Options(source),
            Some(name) => RunError::NamedOptions {
                place: self.place.name,
                name: name.to_owned(),
                origin: plugin.origin.to_string(),
                source: Box::new(source),
            },
        })
    }
}

/// Options as they were given, each `key=value`; `place` is the key of the config or the flag.
pub(crate) fn options<'a>(
    place: &'static str,
    given: &'a [String],
) -> Result<Vec<(&'a str, OptionValue)>, RunError> {
    given.iter().map(|given| option(place, given)).collect()
}

/// `key=value`: a number, true, false, or a word.
fn option<'a>(place: &'static str, given: &'a str) -> Result<(&'a str, OptionValue), RunError> {
    let Some((key, value)) = given.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err(RunError::PluginOption { place, given: given.to_owned() });
    };
    let value = match (value, value.parse::<f64>()) {
        ("true", _) => OptionValue::Flag(true),
        ("false", _) => OptionValue::Flag(false),
        (_, Ok(number)) => OptionValue::Number(number),
        (word, Err(_)) => OptionValue::Text(word.to_owned()),
    };
    Ok((key, value))
}
