//! From a config's words to the numbers that training takes.

use crate::error::RunError;
use forgelm_config::{
    GaloreOptim, GaloreProjType, LoraBias, LrSchedulerType, Optim, QuantComputeDtype, QuantType,
    Run, TargetModules, TrainerType, Training,
};
use forgelm_data::PlanSettings;
use forgelm_kernels_api::{Compute, Rounding};
use forgelm_model::{
    ALL_LINEAR, FourBitStorage, LinearStorage, LoadOptions, LoraConfig, LoraInit, ModelConfig,
    Role, Selection, TrainedBias,
};
use forgelm_sdk::OptionValue;
use forgelm_tensor::{FourBit, ScaleStorage};
use forgelm_train::optimizer::{GaloreSettings, Kind, OptimizerSettings, ProjectionType};
use forgelm_train::schedule::{Decay, Schedule};
use forgelm_train::session::Settings;
use std::collections::BTreeMap;

/// What a config trains.
///
/// # Errors
/// If a pattern of GaLore matches nothing, or an expert does not exist.
pub fn selection(run: &Run, model: &ModelConfig) -> Result<Selection, RunError> {
    if run.training.galore_enabled {
        let linears =
            |layer| model.linears(layer).into_iter().map(move |of| Role::Linear(layer, of));
        let roles = (0..model.num_hidden_layers).flat_map(linears);
        let names: Vec<String> = roles.map(|role| role.hf_name(model.module_names())).collect();
        return Ok(Selection::Weights(galore(&run.training).matching(&names)?));
    }
    if !run.lora.enabled {
        return Ok(Selection::Everything);
    }
    let moe = run.model.moe.as_ref().filter(|_| model.experts.is_some());
    let lora = match moe.and_then(|moe| moe.chosen_experts()) {
        Some(experts) => lora(run).for_experts(&experts, model)?,
        None => lora(run),
    };
    Ok(Selection::Adapter(lora))
}

/// The adapter that a config asks for.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the config bounds both"
)]
pub fn lora(run: &Run) -> LoraConfig {
    let target_modules = match &run.lora.target_modules {
        TargetModules::AllLinear => vec![ALL_LINEAR.to_owned()],
        TargetModules::Suffixes(names) => names.clone(),
    };
    LoraConfig {
        r: run.lora.r,
        alpha: run.lora.alpha as f64,
        dropout: run.lora.dropout as f32,
        target_modules,
        rslora: run.lora.is_rslora(),
        dora: run.lora.is_dora(),
        init: if run.lora.is_pissa() { LoraInit::PrincipalComponents } else { LoraInit::Noise },
        bias: match run.lora.bias {
            LoraBias::None => TrainedBias::None,
            LoraBias::All => TrainedBias::All,
            LoraBias::LoraOnly => TrainedBias::LoraOnly,
        },
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
    }
}

/// How the base model is read.
#[must_use]
pub fn load_options(run: &Run, compute: Compute) -> LoadOptions {
    let model = &run.model;
    if !model.load_in_4bit {
        let quantizes_experts = model.moe.as_ref().is_some_and(|moe| moe.quantize_experts);
        let linear =
            if quantizes_experts { LinearStorage::Int8Experts } else { LinearStorage::Dense };
        return LoadOptions { compute, linear };
    }
    let storage = FourBitStorage {
        kind: match model.bnb_4bit_quant_type {
            QuantType::Nf4 => FourBit::Nf4,
            QuantType::Fp4 => FourBit::Fp4,
        },
        scales: if model.bnb_4bit_use_double_quant {
            ScaleStorage::Double
        } else {
            ScaleStorage::Single
        },
        rounding: match model.bnb_4bit_compute_dtype {
            QuantComputeDtype::Float16 => Rounding::F16,
            QuantComputeDtype::Auto | QuantComputeDtype::Bfloat16 | QuantComputeDtype::Float32 => {
                Rounding::Exact
            }
        },
    };
    let compute = match model.bnb_4bit_compute_dtype {
        QuantComputeDtype::Auto => compute,
        QuantComputeDtype::Bfloat16 => Compute::Bf16,
        QuantComputeDtype::Float16 | QuantComputeDtype::Float32 => Compute::F32,
    };
    LoadOptions { compute, linear: LinearStorage::FourBit(storage) }
}

/// The options of the objective, under the names that its plugin knows.
#[must_use]
pub fn trainer_options(run: &Run) -> Vec<(&'static str, OptionValue)> {
    let training = &run.training;
    let number = |name, value| (name, OptionValue::Number(value));
    match training.trainer_type {
        TrainerType::Sft | TrainerType::Grpo => Vec::new(),
        TrainerType::Dpo => vec![number("beta", training.dpo_beta)],
        TrainerType::Simpo => {
            vec![number("beta", training.simpo_beta), number("gamma", training.simpo_gamma)]
        }
        TrainerType::Kto => vec![number("beta", training.kto_beta)],
        TrainerType::Orpo => vec![number("beta", training.orpo_beta)],
    }
}

/// The order of the data.
#[must_use]
pub fn data_plan(run: &Run) -> PlanSettings {
    let training = &run.training;
    let (b, a) = (training.per_device_train_batch_size, training.gradient_accumulation_steps);
    // Of prompts a step has one for each group of answers.
    let (units, micro_batches) = match training.trainer_type {
        TrainerType::Grpo => ((b * a / training.grpo_num_generations).max(1), 1),
        _ => (b, a),
    };
    PlanSettings {
        seed: training.seed,
        shuffle: run.data.shuffle,
        per_device_train_batch_size: units,
        gradient_accumulation_steps: micro_batches,
        num_train_epochs: training.num_train_epochs,
        max_steps: u64::try_from(training.max_steps).ok().filter(|&steps| steps > 0),
        packed_to: training.is_packed().then_some(run.model.max_length),
    }
}

/// The optimizer.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "kernels work in f32")]
pub fn optimizer(run: &Run) -> OptimizerSettings {
    let training = &run.training;
    let galore = training.galore_enabled.then(|| galore(training));
    let kind = match (&galore, training.optim, training.galore_optim) {
        (None, Optim::AdamW, _)
        | (Some(_), _, GaloreOptim::AdamW | GaloreOptim::AdamWLayerwise) => Kind::AdamW,
        (None, Optim::AdamW8bit, _)
        | (Some(_), _, GaloreOptim::AdamW8bit | GaloreOptim::AdamW8bitLayerwise) => Kind::AdamW8bit,
        (None, Optim::Adafactor, _)
        | (Some(_), _, GaloreOptim::Adafactor | GaloreOptim::AdafactorLayerwise) => Kind::Adafactor,
    };
    let plain = OptimizerSettings::new(kind, training.weight_decay as f32);
    OptimizerSettings { galore, ..plain }
}

fn galore(training: &Training) -> GaloreSettings {
    let projection = match training.galore_proj_type {
        GaloreProjType::Std => ProjectionType::Std,
        GaloreProjType::ReverseStd => ProjectionType::ReverseStd,
        GaloreProjType::Right => ProjectionType::Right,
        GaloreProjType::Left => ProjectionType::Left,
        GaloreProjType::Full => ProjectionType::Full,
    };
    GaloreSettings {
        rank: training.galore_rank,
        update_proj_gap: training.galore_update_proj_gap,
        scale: training.galore_scale,
        projection,
        target_modules: training.galore_target_modules.clone(),
        layerwise: training.galore_optim.is_layerwise(),
    }
}

/// Schedule and clipping of a run of `n_steps` steps.
#[must_use]
pub fn training(run: &Run, n_steps: u64) -> Settings {
    let training = &run.training;
    let decay = match training.lr_scheduler_type {
        LrSchedulerType::Linear => Decay::Linear,
        LrSchedulerType::Cosine => Decay::Cosine,
        LrSchedulerType::Constant => Decay::Constant,
    };
    Settings {
        schedule: Schedule::new(decay, training.learning_rate, training.warmup_ratio, n_steps),
        max_grad_norm: training.max_grad_norm,
        noise_alpha: training.neftune_noise_alpha,
        seed: training.seed,
    }
}

/// Steps between lines of the log: as configured, else a hundredth of the training records, from
/// 1 to 50.
#[must_use]
pub fn logging_steps(run: &Run, n_train: usize) -> u64 {
    run.training.logging_steps.unwrap_or_else(|| (n_train as u64 / 100).clamp(1, 50))
}
