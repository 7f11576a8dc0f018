//! A model's files, opened and described but not yet read.

use std::path::PathBuf;
use std::sync::Arc;

use forgelm_artifact::gguf::{GgufError, GgufFile};
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_artifact::sharded::{ShardedError, ShardedModel};
use forgelm_artifact::{Class, TensorView};
use forgelm_kernels_api::{Compute, Ops};
use thiserror::Error;

use crate::config::{ConfigError, ModelConfig, read_config_json};
use crate::decoder::Decoder;
use crate::names::Role;
use crate::store::{RotaryOrder, StoredTensor, TensorStore};
use crate::weights::WeightsError;

/// Where a model lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// A Hugging Face folder: `config.json` and safetensors, in one piece or in shards.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Why a model cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Its description.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The safetensors files.
    #[error(transparent)]
    Folder(#[from] ShardedError),
    /// The GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

impl LoadError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Folder(e) => e.class(),
            Self::Gguf(e) => e.class(),
            Self::Weights(WeightsError::NotFinite { .. } | WeightsError::HeadNotTied { .. }) => {
                Class::Integrity
            }
            Self::Config(_)
            | Self::Weights(
                WeightsError::Missing { .. }
                | WeightsError::Unexpected { .. }
                | WeightsError::Shape { .. }
                | WeightsError::Format { .. },
            ) => Class::Input,
        }
    }
}

/// A model whose files are open and whose configuration is known. No weight was read yet.
#[derive(Debug)]
pub struct OpenModel {
    config: ModelConfig,
    store: FileStore,
}

impl OpenModel {
    /// Opens the files and reads the configuration.
    ///
    /// # Errors
    /// If a file is not as its format asks, or the model cannot be run.
    pub fn open(files: &ModelFiles) -> Result<Self, LoadError> {
        match files {
            ModelFiles::Folder(folder) => {
                // The description first: it says why a foreign architecture cannot run.
                let config = read_config_json(folder)?;
                let store = FileStore::Folder(folder.clone(), ShardedModel::open(folder)?);
                Ok(Self { config, store })
            }
            ModelFiles::Gguf(path) => {
                let file = GgufFile::open(path)?;
                let config = ModelConfig::from_gguf(&file)?;
                Ok(Self { config, store: FileStore::Gguf(file) })
            }
        }
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// For overrides from a run's configuration (rotary scaling, sliding window).
    pub fn config_mut(&mut self) -> &mut ModelConfig {
        &mut self.config
    }

    /// The tensors.
    #[must_use]
    pub fn store(&self) -> &dyn TensorStore {
        &self.store
    }

    /// Whether every weight file is still the one that was opened.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        match &self.store {
            FileStore::Folder(_, model) => model.files().iter().all(SafetensorsFile::unchanged),
            FileStore::Gguf(file) => file.unchanged(),
        }
    }

    /// Reads and packs the weights. The files stay mapped until `self` goes.
    ///
    /// # Errors
    /// If an override contradicts the rest, or the weights are not those of the configuration.
    pub fn load(&self, ops: Arc<dyn Ops>, compute: Compute) -> Result<Decoder, LoadError> {
        self.config.validate()?;
        Ok(Decoder::from_store(self.config.clone(), &self.store, ops, compute)?)
    }
}

/// The file formats behind one seam.
#[derive(Debug)]
enum FileStore {
    Folder(PathBuf, ShardedModel),
    Gguf(GgufFile),
}

impl TensorStore for FileStore {
    fn place(&self) -> String {
        match self {
            Self::Folder(folder, _) => folder.display().to_string(),
            Self::Gguf(file) => file.path().display().to_string(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Folder(_, model) => model.names().map(str::to_owned).collect(),
            Self::Gguf(file) => file.names().map(str::to_owned).collect(),
        }
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let view: TensorView<'_> = match self {
            Self::Folder(_, model) => model.tensor(name)?,
            Self::Gguf(file) => file.tensor(name)?,
        };
        Some(StoredTensor { dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes })
    }

    fn release(&self, tensor: &StoredTensor<'_>) {
        match self {
            Self::Folder(_, model) => {
                model.files().iter().for_each(|file| file.release(tensor.bytes));
            }
            Self::Gguf(file) => file.release(tensor.bytes),
        }
    }

    fn name_of(&self, role: Role) -> String {
        match self {
            Self::Folder(..) => role.hf_name(),
            Self::Gguf(_) => role.gguf_name(),
        }
    }

    fn rotary_order(&self) -> RotaryOrder {
        match self {
            Self::Folder(..) => RotaryOrder::HalfSplit,
            Self::Gguf(_) => RotaryOrder::Interleaved,
        }
    }
}
