//! A model's files, opened and described but not yet read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forgelm_artifact::gguf::{GgufError, GgufFile};
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_artifact::sharded::{ShardedError, ShardedModel};
use forgelm_artifact::{Class, TensorView, json};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_tensor::{Dtype, FourBit};
use thiserror::Error;

use crate::architecture::{AVAILABLE, Architecture};
use crate::config::{ConfigError, Dims, ModelConfig, read_classifier_json, read_config_json};
use crate::decoder::Decoder;
use crate::float8::{self, Float8Scales, Float8Storage};
use crate::four_bit::{self, FourBitWeight};
use crate::names::{ModuleNames, Role, gguf};
use crate::parts::Holders;
use crate::storage::LoadOptions;
use crate::store::{
    Located, RotaryOrder, StoredTensor, TensorStore, fused_experts, stacked_experts,
};
use crate::weights::{WeightsError, check_tensors};
use crate::whole::description_of;

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
                WeightsError::FourBit { .. }
                | WeightsError::Float8 { .. }
                | WeightsError::Missing { .. }
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
                let files = Files::Folder(folder.clone(), ShardedModel::open(folder)?);
                Ok(Self { store: FileStore::new(files, &config), config })
            }
            ModelFiles::Gguf(path) => {
                let file = GgufFile::open(path)?;
                let config = ModelConfig::from_gguf(&file)?;
                Ok(Self { store: FileStore::new(Files::Gguf(file), &config), config })
            }
        }
    }

    /// Opens a folder with a model that classifies sequences.
    ///
    /// # Errors
    /// If a file is not as its format asks, or the model is no classifier that can be run.
    pub fn open_classifier(folder: &Path) -> Result<Self, LoadError> {
        let config = read_classifier_json(folder)?;
        let files = Files::Folder(folder.to_owned(), ShardedModel::open(folder)?);
        Ok(Self { store: FileStore::new(files, &config), config })
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

    /// The files that describe the model in a Hugging Face folder, by name.
    ///
    /// # Errors
    /// If one cannot be read, or the model has a part that such a folder cannot describe.
    pub fn description(&self) -> Result<Vec<(&'static str, String)>, ConfigError> {
        match &self.store.files {
            Files::Folder(folder, _) => description_of(folder),
            Files::Gguf(_) => {
                let text = json::pretty(&self.config.to_hf_json()?);
                Ok(vec![("config.json", text)])
            }
        }
    }

    /// Refuses a model that lacks a tensor of its configuration, or has one that it does not know.
    ///
    /// # Errors
    /// Naming the tensor.
    pub fn check_tensors(&self) -> Result<(), LoadError> {
        Ok(check_tensors(&self.store, &self.config)?)
    }

    /// What the files say that is not used, for whoever reads along.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let Files::Folder(folder, model) = &self.store.files else { return None };
        self.config.float8.as_ref()?;
        let n = model.names().filter(|name| float8::is_of_activations(name)).count();
        (n > 0).then(|| {
            let folder = folder.display();
            format!(
                "{folder}: {n} scales of activations are not used; only weights are in FP8 here"
            )
        })
    }

    /// Whether every weight file is still the one that was opened.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        match &self.store.files {
            Files::Folder(_, model) => model.files().iter().all(SafetensorsFile::unchanged),
            Files::Gguf(file) => file.unchanged(),
        }
    }

    /// Reads and packs the weights. The files stay mapped until `self` goes.
    ///
    /// # Errors
    /// If an override contradicts the rest, or the weights are not those of the configuration.
    pub fn load(&self, ops: Arc<dyn Ops>, compute: Compute) -> Result<Decoder, LoadError> {
        self.load_as(ops, LoadOptions::dense(compute))
    }

    /// As [`OpenModel::load`], with the linear layers kept as the options say.
    ///
    /// # Errors
    /// As [`OpenModel::load`].
    pub fn load_as(&self, ops: Arc<dyn Ops>, options: LoadOptions) -> Result<Decoder, LoadError> {
        self.load_part(ops, options, None)
    }

    /// As [`OpenModel::load_as`], with a part of each matrix where `holders` have the rest of it.
    ///
    /// # Errors
    /// As [`OpenModel::load`].
    pub fn load_part(
        &self,
        ops: Arc<dyn Ops>,
        options: LoadOptions,
        holders: Option<Holders>,
    ) -> Result<Decoder, LoadError> {
        self.config.validate()?;
        // Packing goes from tensor to tensor and would wait for the disk at each; meanwhile the
        // files are read in their own order.
        let is_loaded = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.read_ahead(&|| is_loaded.load(Ordering::Relaxed)));
            let decoder = {
                let config = self.config.clone();
                Decoder::from_store_as(config, &self.store, ops, options, holders)
            };
            is_loaded.store(true, Ordering::Relaxed);
            Ok(decoder?)
        })
    }

    fn read_ahead(&self, is_enough: &dyn Fn() -> bool) {
        match &self.store.files {
            Files::Folder(_, model) => {
                model.files().iter().for_each(|file| file.read_ahead(is_enough));
            }
            Files::Gguf(file) => file.read_ahead(is_enough),
        }
    }
}

/// The head of a classifier in a Hugging Face folder.
const CLASSIFIER_HEAD: &str = "score.weight";

/// The file formats behind one seam.
#[derive(Debug)]
struct FileStore {
    files: Files,
    names: ModuleNames,
    post_norms: bool,
    is_classifier: bool,
    /// Whether query and key rows of a GGUF file are interleaved.
    is_interleaved: bool,
    /// How weights in floats of eight bits are scaled.
    float8: Option<Float8Storage>,
}

#[derive(Debug)]
enum Files {
    Folder(PathBuf, ShardedModel),
    Gguf(GgufFile),
}

impl FileStore {
    fn new(files: Files, config: &ModelConfig) -> Self {
        // Only the tool's `llama` family reorders these rows.
        let is_llama = |a: &&Architecture| a.gguf == "llama" && a.model_type == config.model_type;
        Self {
            names: config.module_names(),
            post_norms: config.norms.post_norms,
            is_classifier: config.labels.is_some(),
            is_interleaved: matches!(files, Files::Gguf(_))
                && AVAILABLE.iter().any(|a| is_llama(&a)),
            float8: config.float8.clone(),
            files,
        }
    }

    /// The tensor that says how a weight in four bits is stored.
    fn state(&self, name: &str) -> Option<(FourBit, String)> {
        let Files::Folder(_, model) = &self.files else { return None };
        four_bit::state_names(name).into_iter().find(|(_, state)| model.tensor(state).is_some())
    }

    /// Whether a tensor is a part of a weight in four bits, or in floats of eight.
    fn is_beside_weight(&self, name: &str) -> bool {
        let is_float8 = |of: &str| {
            let dtype = self.view(of).map(|tensor| tensor.dtype);
            matches!(dtype, Some(Dtype::F8E4m3 | Dtype::F8E5m2))
        };
        four_bit::weight_of(name).is_some_and(|of| self.state(of).is_some())
            || self.float8.is_some()
                && (float8::scaled_by(name).is_some_and(is_float8)
                    || float8::is_of_activations(name))
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        match &self.files {
            Files::Folder(_, model) => model.tensor(name),
            Files::Gguf(file) => file.tensor(name),
        }
    }
}

impl TensorStore for FileStore {
    fn place(&self) -> String {
        match &self.files {
            Files::Folder(folder, _) => folder.display().to_string(),
            Files::Gguf(file) => file.path().display().to_string(),
        }
    }

    fn names(&self) -> Vec<String> {
        match &self.files {
            Files::Folder(_, model) => model
                .names()
                .filter(|name| !self.is_beside_weight(name))
                .map(str::to_owned)
                .collect(),
            Files::Gguf(file) => file.names().map(str::to_owned).collect(),
        }
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let view = self.view(name)?;
        Some(StoredTensor { dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes })
    }

    fn release(&self, tensor: &StoredTensor<'_>) {
        match &self.files {
            Files::Folder(_, model) => {
                model.files().iter().for_each(|file| file.release(tensor.bytes));
            }
            Files::Gguf(file) => file.release(tensor.bytes),
        }
    }

    fn name_of(&self, role: Role) -> String {
        match &self.files {
            Files::Folder(..) if self.is_classifier && role == Role::Head => {
                CLASSIFIER_HEAD.to_owned()
            }
            Files::Folder(..) => role.hf_name(self.names),
            Files::Gguf(_) => gguf::name(role, self.post_norms),
        }
    }

    fn locate(&self, role: Role, dims: &Dims) -> Located {
        let name = self.name_of(role);
        let shared = match &self.files {
            Files::Folder(..) if self.view(&name).is_none() => fused_experts(role, dims),
            Files::Folder(..) => None,
            Files::Gguf(_) => stacked_experts(role, name.clone(), dims),
        };
        shared.unwrap_or_else(|| Located { name, shape: role.shape(dims), first_row: 0 })
    }

    fn has_whole_norms(&self) -> bool {
        matches!(self.files, Files::Gguf(_))
    }

    fn rotary_order(&self) -> RotaryOrder {
        if self.is_interleaved { RotaryOrder::Interleaved } else { RotaryOrder::HalfSplit }
    }

    fn four_bit(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<FourBitWeight>, WeightsError> {
        let Some(state) = self.state(name) else { return Ok(None) };
        let read = four_bit::read(&|name| self.view(name), name, &state, shape);
        read.map(Some).map_err(|what| WeightsError::FourBit { place: self.place(), what })
    }

    fn float8(&self, name: &str, shape: &[usize]) -> Result<Option<Float8Scales>, WeightsError> {
        let Some(storage) = &self.float8 else { return Ok(None) };
        float8::read(&|name| self.view(name), storage, name, shape)
            .map_err(|what| WeightsError::Float8 { place: self.place(), what })
    }
}
