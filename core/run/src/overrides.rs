//! What a run changes of the model's own description: rotary scaling and the sliding window.
//!
//! An adapter that was trained under them is of use only under them. They are written beside it,
//! in a file of their own that other programs leave alone, and applied again whenever the adapter
//! is loaded.

use crate::error::RunError;
use forgelm_config::Run;
use forgelm_model::ModelConfig;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The file beside an adapter.
pub const FILE: &str = "forgelm_model_overrides.json";

/// The changes. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// `training.rope_scaling`, as it was written.
    #[serde(default)]
    pub rope_scaling: Option<Map<String, Value>>,
    /// `training.sliding_window_attention`.
    #[serde(default)]
    pub sliding_window: Option<usize>,
}

impl Overrides {
    /// Of a config.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let training = &run.training;
        Self {
            rope_scaling: training.rope_scaling.as_ref().map(|scaling| scaling.entries.clone()),
            sliding_window: training
                .sliding_window_attention
                .map(|window| usize::try_from(window).unwrap_or(usize::MAX)),
        }
    }

    /// These, and where they say nothing, `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            rope_scaling: self.rope_scaling.or(other.rope_scaling),
            sliding_window: self.sliding_window.or(other.sliding_window),
        }
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Of the folder of an adapter; nothing when there is no file.
    ///
    /// # Errors
    /// If the file is not what this program writes.
    pub fn read(dir: &Path) -> Result<Self, RunError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let wrong = |problem: String| RunError::Overrides { path: path.clone(), problem };
        let text = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
    }

    /// The file's content.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        if let Some(scaling) = &self.rope_scaling {
            object.insert("rope_scaling".to_owned(), Value::Object(scaling.clone()));
        }
        object.extend(self.sliding_window.map(|n| ("sliding_window".to_owned(), Value::from(n))));
        forgelm_artifact::json::pretty(&Value::Object(object))
    }

    /// Applies them.
    ///
    /// # Errors
    /// If the model cannot take them.
    pub fn apply(&self, config: &mut ModelConfig) -> Result<(), RunError> {
        if let Some(scaling) = &self.rope_scaling {
            config.override_rope_scaling(scaling)?;
        }
        if let Some(window) = self.sliding_window
            && !config.override_sliding_window(window)
        {
            return Err(RunError::NoWindow { model_type: config.model_type.clone() });
        }
        config.validate()?;
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_comes_back_and_foreign_ones_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Overrides::read(dir.path()).expect("no file").is_empty());
        let scaling = json!({"type": "linear", "factor": 2.5}).as_object().cloned();
        let overrides = Overrides { rope_scaling: scaling, sliding_window: None };
        std::fs::write(dir.path().join(FILE), overrides.to_json()).expect("written");
        assert_eq!(Overrides::read(dir.path()).expect("ours"), overrides);
        let run = Overrides { rope_scaling: None, sliding_window: Some(8) };
        let both = run.or(overrides.clone());
        assert_eq!((both.rope_scaling, both.sliding_window), (overrides.rope_scaling, Some(8)));
        for text in ["", "[]", r#"{"sliding_window": -1}"#, r#"{"windows": 3}"#] {
            std::fs::write(dir.path().join(FILE), text).expect("written");
            let error = Overrides::read(dir.path()).expect_err("not ours").to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }
}
