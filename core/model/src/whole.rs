//! A whole model as a folder: the base with what was trained in it.
//!
//! Tensors keep the number format that the base stores them in; those of block formats (GGUF)
//! become bfloat16. An adapter is folded in with sums in f64 and rounded once.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use forgelm_artifact::json;
use forgelm_artifact::safetensors::PlannedTensor;
use forgelm_artifact::sharded::{SHARD_BYTES_MAX, write_model};
use forgelm_artifact::write::{StagedDir, WriteError};
use forgelm_kernels_api::RowSource;
use forgelm_tensor::{Dtype, quantize};
use serde_json::Value;
use thiserror::Error;

use crate::adapter::{AdaptedModule, AdapterError};
use crate::config::ConfigError;
use crate::decoder::Decoder;
use crate::names::Role;
use crate::open::OpenModel;
use crate::store::{StoredRows, StoredTensor};
use crate::trainable::Trainable;
use crate::weights::{WeightsError, stored_rows};

/// The key of `config.json` for weights that are quantized.
const QUANTIZATION: &str = "quantization_config";
/// Elements that are changed together.
const BLOCK: usize = 1 << 20;

/// Why a whole model could not be written.
#[derive(Debug, Error)]
pub enum WholeModelError {
    /// A tensor of the base.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The description of the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A tensor of a model as a Hugging Face folder holds it, with what was trained folded in. Its rows
/// are those of the last axis.
pub struct WholeTensor<'a> {
    model: &'a OpenModel,
    role: Role,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    rows: StoredRows<'a>,
    /// Has the weight as it ran, where that is not what the files hold.
    loaded: Option<&'a Decoder>,
    change: Change<'a>,
}

/// What training did to a tensor.
enum Change<'a> {
    Nothing,
    Adapter(&'a Trainable, &'a AdaptedModule),
    Trained(Cow<'a, [f32]>),
}

impl OpenModel {
    /// Writes the weights of this model with `trainable` in them and its description to `dir`:
    /// `config.json`, `generation_config.json` where there is one, and safetensors, in shards when
    /// they are large.
    ///
    /// `decoder` is what was loaded from it. Where its linear layers were quantized on the way,
    /// their values as they ran are what is written: the adapter was trained beside these.
    ///
    /// # Errors
    /// If a tensor cannot be read, the model cannot be described, or the system refuses.
    pub fn write_whole(
        &self,
        decoder: &Decoder,
        trainable: &Trainable,
        dir: &mut StagedDir,
    ) -> Result<(), WholeModelError> {
        for (name, text) in self.description()? {
            dir.write(name, text.as_bytes())?;
        }
        let loaded = decoder.is_quantized_on_load().then_some(decoder);
        let trainable = match loaded {
            // Its layers lack what the adapter took from them.
            Some(_) => trainable.clone(),
            None => trainable.on_original_weights(self.config())?,
        };
        let parts = self.parts(loaded, Some(&trainable))?;
        let planned: Vec<PlannedTensor<'_>> = parts
            .iter()
            .map(|part| PlannedTensor { name: &part.name, dtype: part.dtype, shape: &part.shape })
            .collect();
        let mut fill = |i: usize, w: &mut dyn Write| parts[i].write(w);
        write_model(dir, &planned, SHARD_BYTES_MAX, &mut fill)?;
        for part in &parts {
            part.check_finite()?;
        }
        Ok(())
    }

    /// Every tensor of this model, in the order of its layers, with `trainable` in it.
    ///
    /// # Errors
    /// If one is missing, or of the wrong shape or format.
    pub fn whole_tensors<'a>(
        &'a self,
        trainable: Option<&'a Trainable>,
    ) -> Result<Vec<WholeTensor<'a>>, WeightsError> {
        self.parts(None, trainable)
    }

    fn parts<'a>(
        &'a self,
        loaded: Option<&'a Decoder>,
        trainable: Option<&'a Trainable>,
    ) -> Result<Vec<WholeTensor<'a>>, WeightsError> {
        let config = self.config();
        let head = (!config.tie_word_embeddings).then_some(Role::Head);
        let dims = config.dims();
        let part = |role: Role| {
            let (stored, rows) = stored_rows(self.store(), config, role)?;
            let change = trainable.map_or(Change::Nothing, |trainable| change_of(trainable, role));
            let dtype = match stored {
                Dtype::F32 | Dtype::F16 | Dtype::Bf16 => stored,
                _ => Dtype::Bf16,
            };
            let (name, shape) = (role.hf_name(config.module_names()), role.shape(&dims));
            Ok(WholeTensor { model: self, role, name, dtype, shape, rows, loaded, change })
        };
        Role::always(config).into_iter().chain(head).map(part).collect()
    }
}

fn change_of(trainable: &Trainable, role: Role) -> Change<'_> {
    let adapted = match role {
        Role::Linear(layer, linear) => trainable.module(layer, linear),
        _ => None,
    };
    match (trainable.stored(role), adapted) {
        (Some(values), _) => Change::Trained(values),
        (None, Some(module)) => Change::Adapter(trainable, module),
        (None, None) => Change::Nothing,
    }
}

impl RowSource for WholeTensor<'_> {
    fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.rows.n_cols()
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) {
        match &self.change {
            Change::Trained(values) => {
                out.copy_from_slice(&values[first * self.n_cols()..][..out.len()]);
            }
            Change::Nothing => self.read_stored(first, out),
            Change::Adapter(trainable, module) => {
                self.read_stored(first, out);
                trainable.merge_rows(module, first, out);
            }
        }
    }
}

impl WholeTensor<'_> {
    /// The part that it plays.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name in a Hugging Face folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number format that a folder keeps it in: that of the files, bfloat16 for block formats.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Axes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes that the files keep it in.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.rows.bytes().len()
    }

    /// Whether what was trained changes it.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !matches!(self.change, Change::Nothing)
    }

    /// Refuses a tensor of which a value that was read is not a number.
    ///
    /// # Errors
    /// Naming the first.
    pub fn check_finite(&self) -> Result<(), WeightsError> {
        let (store, config) = (self.model.store(), self.model.config());
        crate::weights::check_finite(store, config, self.role, &self.rows)
    }

    /// Lets go of the memory of the file's bytes; they can be read again.
    pub fn release(&self) {
        let (dtype, bytes) = (self.rows.dtype(), self.rows.bytes());
        self.model.store().release(&StoredTensor { dtype, shape: Vec::new(), bytes });
    }

    fn read_stored(&self, first: usize, out: &mut [f32]) {
        match (self.loaded, self.role) {
            (Some(decoder), Role::Linear(layer, linear)) => {
                decoder.linear(layer, linear).read_rows(first, out);
            }
            _ => self.rows.read_rows(first, out),
        }
    }

    fn write(&self, w: &mut dyn Write) -> io::Result<()> {
        let n_cols = self.n_cols();
        let rows_max = (BLOCK / n_cols).max(1);
        let mut block = Vec::new();
        for first in (0..self.n_rows()).step_by(rows_max) {
            let n = rows_max.min(self.n_rows() - first);
            block.resize(n * n_cols, 0.0);
            self.read_rows(first, &mut block);
            let bytes = quantize(self.dtype, &block).map_err(io::Error::other)?;
            w.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// The files of a Hugging Face folder that describe a model, as they are; but weights that are
/// quantized there are dense wherever they are written again.
pub(crate) fn description_of(folder: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let mut files = Vec::new();
    for name in ["config.json", "generation_config.json"] {
        let path = folder.join(name);
        if name != "config.json" && !path.is_file() {
            continue;
        }
        let unreadable = |cause: String| {
            let place = path.display().to_string();
            ConfigError::Unreadable { place, cause }
        };
        let mut text = std::fs::read_to_string(&path).map_err(|e| unreadable(e.to_string()))?;
        if name == "config.json" && text.contains(QUANTIZATION) {
            let mut value: Value =
                serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
            let object = value.as_object_mut();
            if object.is_some_and(|object| object.shift_remove(QUANTIZATION).is_some()) {
                text = json::pretty(&value);
            }
        }
        files.push((name, text));
    }
    Ok(files)
}
