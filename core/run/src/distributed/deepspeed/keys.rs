//! Every key of DeepSpeed's files, with what it means here.
//!
//! Source: DeepSpeed's `docs/_pages/config-json.md`, `deepspeed/runtime/constants.py` and
//! `deepspeed/runtime/zero/config.py`. A key that is not in this list is refused.

use super::compare::{self, Said};
use forgelm_config::Run;

/// One key.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) meaning: Meaning,
}

/// What a key means here.
pub(super) enum Meaning {
    /// It is read.
    Used(Shape),
    /// The config of the run says it, and it must say the same.
    As(fn(&Run) -> Said),
    /// It says how DeepSpeed works, and has no counterpart here: no result changes.
    NoEffect,
    /// What it switches on is not there. Off is null, false, 0, `auto`, nothing, `enabled: false`, and
    /// this value.
    Off { also: Option<&'static str>, why: &'static str },
    /// More keys.
    Section(&'static [Key]),
}

/// What a value that is read looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// 0 to 3.
    Stage,
    /// true or false.
    Switch,
    /// Where what is taken off the device goes.
    Device,
    /// A number of elements.
    Count,
}

const fn used(name: &'static str, shape: Shape) -> Key {
    Key { name, meaning: Meaning::Used(shape) }
}

const fn same(name: &'static str, said: fn(&Run) -> Said) -> Key {
    Key { name, meaning: Meaning::As(said) }
}

const fn none(name: &'static str) -> Key {
    Key { name, meaning: Meaning::NoEffect }
}

const fn off(name: &'static str, why: &'static str) -> Key {
    Key { name, meaning: Meaning::Off { also: None, why } }
}

const fn off_is(name: &'static str, also: &'static str, why: &'static str) -> Key {
    Key { name, meaning: Meaning::Off { also: Some(also), why } }
}

const fn section(name: &'static str, keys: &'static [Key]) -> Key {
    Key { name, meaning: Meaning::Section(keys) }
}

const QUANTIZED: &str = "what travels between processes is never rounded";
const GROUPS: &str = "there are no groups of processes within a run";
const OTHER_DATA: &str = "the data of a step follows from the config alone";
const OTHER_TRAINING: &str = "it trains in another way";
const FLOAT16: &str = "products are in float32 or bfloat16";

/// The whole file.
pub(super) const ROOT: &[Key] = &[
    same("train_batch_size", compare::batch),
    same("train_micro_batch_size_per_gpu", compare::micro_batch),
    same("gradient_accumulation_steps", compare::accumulation),
    same("gradient_clipping", compare::clipping),
    section("zero_optimization", ZERO),
    section("optimizer", OPTIMIZER),
    section("scheduler", SCHEDULER),
    section("bf16", BF16),
    section("bfloat16", BF16),
    section("fp16", FP16),
    off("amp", FLOAT16),
    section("data_types", DATA_TYPES),
    off_is("communication_data_type", "\"fp32\"", QUANTIZED),
    off_is("seq_parallel_communication_data_type", "\"fp32\"", QUANTIZED),
    none("fp32_allreduce"),
    none("prescale_gradients"),
    none("gradient_predivide_factor"),
    none("disable_allgather"),
    off("sparse_gradients", "gradients are whole"),
    none("steps_per_print"),
    none("wall_clock_breakdown"),
    none("memory_breakdown"),
    none("dump_state"),
    none("vocabulary_size"),
    none("timers"),
    none("flops_profiler"),
    none("comms_logger"),
    none("monitor_config"),
    none("tensorboard"),
    none("wandb"),
    none("csv_monitor"),
    none("comet"),
    none("activation_checkpointing"),
    none("checkpoint"),
    none("nebula"),
    none("aio"),
    none("compile"),
    none("zero_allow_untested_optimizer"),
    none("zero_force_ds_cpu_optimizer"),
    none("use_data_before_expert_parallelism"),
    none("graph_harvesting"),
    off("dataloader_drop_last", OTHER_DATA),
    off("elasticity", "the batch of a step does not depend on the number of processes"),
    off("autotuning", "nothing is tried out before a run"),
    off("pipeline", "layers are not dealt out among processes"),
    off("tensor_parallel", "layers are not cut among processes"),
    off("hybrid_engine", OTHER_TRAINING),
    off("sparse_attention", OTHER_TRAINING),
    off("progressive_layer_drop", OTHER_TRAINING),
    off("eigenvalue", OTHER_TRAINING),
    off("quantize_training", OTHER_TRAINING),
    off("compression_training", OTHER_TRAINING),
    off("curriculum_learning", OTHER_DATA),
    off("data_efficiency", OTHER_DATA),
];

const ZERO: &[Key] = &[
    used("stage", Shape::Stage),
    section("offload_optimizer", OFFLOAD),
    section("offload_param", OFFLOAD),
    used("overlap_comm", Shape::Switch),
    used("stage3_prefetch_bucket_size", Shape::Count),
    none("contiguous_gradients"),
    none("reduce_scatter"),
    none("reduce_bucket_size"),
    none("use_multi_rank_bucket_allreduce"),
    none("allgather_partitions"),
    none("allgather_bucket_size"),
    none("load_from_fp32_weights"),
    none("elastic_checkpoint"),
    none("legacy_stage1"),
    none("grad_hooks"),
    none("ignore_unused_parameters"),
    none("sub_group_size"),
    none("stage3_param_persistence_threshold"),
    none("stage3_model_persistence_threshold"),
    none("stage3_max_live_parameters"),
    none("stage3_max_reuse_distance"),
    none("stage3_gather_16bit_weights_on_model_save"),
    none("stage3_gather_fp16_weights_on_model_save"),
    none("stage3_module_granularity_threshold"),
    none("stage3_use_all_reduce_for_fetch_params"),
    none("memory_efficient_linear"),
    none("override_module_apply"),
    none("cpu_offload_use_pin_memory"),
    off("cpu_offload", "it is written `offload_optimizer: {\"device\": \"cpu\"}` today"),
    off("cpu_offload_param", "it is written `offload_param: {\"device\": \"cpu\"}` today"),
    off("round_robin_gradients", "each process has one range of the gradient"),
    off("pipeline_loading_checkpoint", "layers are not dealt out among processes"),
    off_is("zero_hpz_partition_size", "1", GROUPS),
    off_is("mics_shard_size", "-1", GROUPS),
    off("mics_hierarchical_params_gather", GROUPS),
    off("zero_quantized_weights", QUANTIZED),
    off("zero_quantized_nontrainable_weights", QUANTIZED),
    off("zero_quantized_gradients", QUANTIZED),
    off("zeropp_loco_param", QUANTIZED),
];

const OFFLOAD: &[Key] = &[
    used("device", Shape::Device),
    none("pin_memory"),
    none("buffer_count"),
    none("buffer_size"),
    none("max_in_cpu"),
    none("pipeline"),
    none("pipeline_read"),
    none("pipeline_write"),
    none("fast_init"),
    off("nvme_path", "nothing is kept on disk between steps"),
    off_is("ratio", "1.0", "the optimizer's state is in one place"),
];

const OPTIMIZER: &[Key] =
    &[same("type", compare::optimizer), section("params", OPTIMIZER_PARAMS), none("legacy_fusion")];

const OPTIMIZER_PARAMS: &[Key] = &[
    same("lr", compare::learning_rate),
    same("weight_decay", compare::weight_decay),
    same("betas", compare::betas),
    same("eps", compare::epsilon),
    same("adam_w_mode", compare::yes),
    same("bias_correction", compare::yes),
    same("max_grad_norm", compare::clipping),
    none("torch_adam"),
    none("fused"),
    off("amsgrad", OTHER_TRAINING),
    // Of 1-bit optimizers, which are refused by their type.
    none("freeze_step"),
    none("var_freeze_step"),
    none("var_update_scaler"),
    none("local_step_scaler"),
    none("local_step_clipper"),
    none("cuda_aware"),
    none("comm_backend_name"),
];

const SCHEDULER: &[Key] = &[same("type", compare::scheduler), section("params", SCHEDULER_PARAMS)];

const SCHEDULER_PARAMS: &[Key] = &[
    same("warmup_min_lr", compare::warmup_begin),
    same("warmup_max_lr", compare::learning_rate),
    same("warmup_num_steps", compare::warmup_steps),
    same("warmup_type", compare::warmup_type),
    same("total_num_steps", compare::total_steps),
    same("warmup_min_ratio", compare::warmup_begin),
    same("cos_min_ratio", compare::last_rate),
    none("last_batch_iteration"),
];

const BF16: &[Key] = &[
    same("enabled", compare::bfloat16),
    none("immediate_grad_update"),
    none("check_grad_overflow"),
    none("bf16_master_weights_and_grads"),
    none("bf16_optimizer_states"),
];

const FP16: &[Key] = &[
    off("enabled", FLOAT16),
    none("auto_cast"),
    none("loss_scale"),
    none("initial_scale_power"),
    none("loss_scale_window"),
    none("hysteresis"),
    none("consecutive_hysteresis"),
    none("min_loss_scale"),
    none("fp16_master_weights_and_grads"),
];

const DATA_TYPES: &[Key] =
    &[off_is("grad_accum_dtype", "\"fp32\"", "gradients are added in float32")];
