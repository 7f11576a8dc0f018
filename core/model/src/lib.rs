//! The decoder: what a model is, how its weights are read, and its forward and backward passes,
//! written by hand.
//!
//! One decoder with options covers a family of architectures ([`architecture`]). The base is
//! frozen; what trains is a [`Trainable`]: an adapter, or weights that stand in the base's place.
//! The crate refuses to know what a loss, an optimizer, a
//! tokenizer or a run is: it takes packed rows and gives log-probabilities, and takes their
//! gradient back.
//!
//! Where to start: [`OpenModel`] reads, [`Decoder`] runs, [`Activations`] is the memory of a step.
//!
//! **Invariants:**
//! - with B = 0 an adapter changes no logit; packed sequences do not see each other; generation
//!   with a cache equals the whole pass (`tests/golden/model.rs`);
//! - results do not depend on the number of threads (`tests/threads.rs`);
//! - a step allocates nothing (`Activations`), and no dense copy of a quantized weight exists
//!   beyond what the kernel library packs (`weights`).
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "sizes become f32 and u32 factors; configuration values are range-checked first"
)]

mod activations;
mod adapter;
pub mod architecture;
mod classifier;
mod config;
mod decoder;
mod float8;
mod four_bit;
mod gguf_model;
mod names;
mod open;
mod parts;
mod rope;
mod storage;
mod store;
mod trainable;
mod weights;
mod whole;

pub use activations::{
    Activations, Engine, Keep, MemoryPlan, NotFiniteAt, OutOfMemory, PlannedBuffer, StepSize,
};
pub use adapter::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALL_LINEAR, AdaptedModule, AdapterError, LoadedAdapter,
    LoraConfig, LoraInit, PeftInfo, TRAINED_WEIGHTS, TrainedBias,
};
pub use architecture::Architecture;
pub use classifier::Classifier;
pub use config::{
    AttentionOptions, ConfigError, Dims, Experts, Labels, MlpOptions, ModelConfig, NormOptions,
    read_classifier_json, read_config_json,
};
pub use decoder::{
    CachedSequence, Decoder, Descent, DropoutStep, EmbeddingNoise, KvCache, PackedInput,
    PartialGradient, Pass, Scored, Stem,
};
pub use float8::{Float8Scales, Float8Storage, ScaleOf};
pub use four_bit::FourBitWeight;
pub use gguf_model::{GgufModel, GgufTensor};
pub use names::{ExpertPart, Linear, ModuleNames, Norm, Role};
pub use open::{LoadError, ModelFiles, OpenModel};
pub use parts::{Holders, Prefetch};
pub use rope::{Rope, RopeScaling, longrope_attention_factor, yarn_attention_factor};
pub use storage::{FourBitStorage, LinearStorage, LoadOptions};
pub use store::{Located, MemoryStore, RotaryOrder, StoredTensor, TensorStore};
pub use trainable::{Adapter, NamedSlice, Places, Selection, Trainable};
pub use weights::WeightsError;
pub use whole::{WholeModelError, WholeTensor};
