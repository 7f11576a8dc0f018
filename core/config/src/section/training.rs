//! `training:` the objective, the schedule, and what is kept.

use super::rope_scaling::RopeScaling;
use super::text_rule::{NOT_BLANK, REVISION, SUBFOLDER};
use crate::declare::{choice, section};

section! {
    /// The objective, the schedule, and what is kept.
    Training {
        /// The folder of the run.
        output_dir: String = "./checkpoints".to_owned(), text(NOT_BLANK);
        /// The folder of the tuned model within `output_dir`.
        final_model_dir: String = "final_model".to_owned(), text(SUBFOLDER);
        /// Saves the whole model with the adapter merged in, not the adapter alone.
        merge_adapters: bool = false;
        /// The objective.
        trainer_type: TrainerType = TrainerType::Sft;
        /// Optimizer steps; more than 0 wins over the epochs, -1 means by epochs.
        max_steps: i64 = -1, upstream(), min(-1.0), max(1e9);
        /// Passes over the data.
        num_train_epochs: u64 = 3, min(1.0), max(100_000.0);
        /// Sequences in a micro-batch.
        per_device_train_batch_size: usize = 4, min(1.0), max(65_536.0);
        /// Micro-batches in an optimizer step.
        gradient_accumulation_steps: usize = 2, min(1.0), max(65_536.0);
        /// The highest learning rate of the schedule.
        learning_rate: f64 = 2e-5, above(0.0), max(100.0);
        /// The optimizer.
        optim: Optim = Optim::AdamW, ours();
        /// The shape of the learning rate after the warm-up.
        lr_scheduler_type: LrSchedulerType = LrSchedulerType::Linear, ours();
        /// Share of the steps in which the learning rate rises from 0.
        warmup_ratio: f64 = 0.1, share();
        /// Decoupled weight decay; biases and norms are exempt.
        weight_decay: f64 = 0.01, min(0.0), max(100.0);
        /// Gradients are scaled down to this global norm; not with a layer-wise optimizer.
        max_grad_norm: f64 = 1.0, ours(), above(0.0), max(1e9);
        /// Seed of the order of the data, the dropout and the adapter's start.
        seed: u64 = 42, ours(), min(0.0), max(9_007_199_254_740_991.0);
        /// The type in which matrices are multiplied; sums are always 32-bit.
        compute_dtype: ComputeDtype = ComputeDtype::Auto, ours();
        /// Where the model is computed: `auto` (the first NVIDIA device, where there is one), `cpu` or
        /// `cuda:N`.
        device: String = "auto".to_owned(), ours();
        /// Threads; the result does not depend on them. Null: all cores that the process may use.
        threads: Option<usize> = None, ours(), min(1.0), max(4096.0);
        /// Steps between lines of the log. Null: a hundredth of the rows, from 1 to 50.
        logging_steps: Option<u64> = None, ours(), min(1.0), max(1e9);
        /// Steps between evaluations, when there is a validation split.
        eval_steps: u64 = 200, min(1.0), max(1e9);
        /// Steps between checkpoints.
        save_steps: u64 = 200, min(1.0), max(1e9);
        /// Checkpoints kept; the best one is never removed.
        save_total_limit: usize = 3, min(1.0), max(1_000_000.0);
        /// Groups short sequences into full micro-batches; they never see each other. Only for sft.
        packing: bool = false;
        /// The same switch as `packing`.
        sample_packing: bool = false;
        /// Evaluations without a lower loss after which training stops.
        early_stopping_patience: u64 = 3, upstream(), min(1.0), max(1e9);
        /// Where metrics go besides `metrics.jsonl`.
        report_to: ReportTo = ReportTo::Tensorboard;
        /// The run's name. Null: the last part of the model's name with `_finetune`.
        run_name: Option<String> = None, text(NOT_BLANK);
        /// Computes activations again in the backward pass: a third more time for much less memory,
        /// and the same bits. Null: when the run does not fit otherwise.
        gradient_checkpointing: Option<bool> = None, ours();
        /// Halves the batch and doubles the accumulation when memory does not suffice, before the
        /// first step or at any later one.
        oom_recovery: bool = false;
        /// The smallest batch to which the recovery goes.
        oom_recovery_min_batch_size: usize = 1, min(1.0), max(65_536.0);
        /// Projects gradients to a low rank.
        galore_enabled: bool = false;
        /// The optimizer of GaLore.
        galore_optim: GaloreOptim = GaloreOptim::AdamW;
        /// Rank of the projection.
        galore_rank: usize = 128, min(1.0), max(65_536.0);
        /// Steps between new projections.
        galore_update_proj_gap: u64 = 200, min(1.0), max(1e9);
        /// Scale of the projected update.
        galore_scale: f64 = 0.25, above(0.0), max(1e9);
        /// The side that is projected.
        galore_proj_type: GaloreProjType = GaloreProjType::Std;
        /// Patterns of the modules that are projected. Null: attention and MLP.
        galore_target_modules: Option<Vec<String>> = None, text(NOT_BLANK);
        /// Stretches positions beyond the length that the model was trained for.
        rope_scaling: Option<RopeScaling> = None;
        /// Scale of the noise that is added to embeddings in training.
        neftune_noise_alpha: Option<f64> = None, above(0.0), max(1e9);
        /// Tokens back that attention sees.
        sliding_window_attention: Option<u64> = None, min(1.0), max(1e9);
        /// Price of a GPU hour, for the cost in the report.
        gpu_cost_per_hour: Option<f64> = None, min(0.0), max(1e9);
        /// Strength of the pull to the reference model.
        dpo_beta: f64 = 0.1, above(0.0), max(1e9);
        /// Margin between chosen and rejected.
        simpo_gamma: f64 = 0.5, min(0.0), max(1e9);
        /// Scale of the length-normalized reward.
        simpo_beta: f64 = 2.0, above(0.0), max(1e9);
        /// Strength of the pull to the reference model.
        kto_beta: f64 = 0.1, above(0.0), max(1e9);
        /// Weight of the odds-ratio term.
        orpo_beta: f64 = 0.1, above(0.0), max(1e9);
        /// Completions for each prompt.
        grpo_num_generations: usize = 4, min(2.0), max(65_536.0);
        /// The longest completion in tokens.
        grpo_max_completion_length: usize = 512, min(1.0), max(16_777_216.0), alias("grpo_max_new_tokens");
        /// A classifier (`...ForSequenceClassification`) whose first logit alone rewards
        /// completions: a folder or a hub id. Null: the built-in rewards.
        grpo_reward_model: Option<String> = None, text(NOT_BLANK);
        /// Pins the reward model.
        grpo_reward_model_revision: Option<String> = None, upstream(), text(REVISION);
    }
}

impl Training {
    /// Whether sequences are packed: both switches mean the same.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.packing || self.sample_packing
    }
}

choice! {
    /// The objective.
    TrainerType {
        /// Next-token loss on the trained tokens.
        Sft = "sft",
        /// Preference pairs against a reference model.
        Dpo = "dpo",
        /// Preference pairs with a length-normalized reward.
        Simpo = "simpo",
        /// Single completions, desirable or not.
        Kto = "kto",
        /// Next-token loss and an odds ratio of pairs.
        Orpo = "orpo",
        /// Rewards of groups of completions.
        Grpo = "grpo",
    }
}

choice! {
    /// The optimizer.
    Optim {
        /// AdamW.
        AdamW = "adamw",
        /// AdamW with an 8-bit state.
        AdamW8bit = "adamw_8bit",
        /// Adafactor: second moments by row and column, no first moments.
        Adafactor = "adafactor",
    }
}

choice! {
    /// The shape of the learning rate after the warm-up.
    LrSchedulerType {
        /// Falls in a line to 0.
        Linear = "linear",
        /// Falls by half a cosine to 0.
        Cosine = "cosine",
        /// Stays.
        Constant = "constant",
    }
}

choice! {
    /// The type in which matrices are multiplied.
    ComputeDtype {
        /// bfloat16 where the processor has instructions for it, else float32.
        Auto = "auto",
        /// IEEE single.
        Float32 = "float32",
        /// bfloat16 products, float32 sums.
        Bfloat16 = "bfloat16",
    }
}

choice! {
    /// Where metrics go besides `metrics.jsonl`.
    ReportTo {
        /// Event files under `output_dir/runs`.
        Tensorboard = "tensorboard",
        /// Weights & Biases: offline runs under `output_dir/wandb`, for `wandb sync`.
        Wandb = "wandb",
        /// The MLflow server in `MLFLOW_TRACKING_URI`.
        Mlflow = "mlflow",
        /// Nowhere else.
        None = "none",
    }
}

choice! {
    /// The optimizer of GaLore.
    GaloreOptim {
        /// AdamW.
        AdamW = "galore_adamw",
        /// AdamW with an 8-bit state.
        AdamW8bit = "galore_adamw_8bit",
        /// Adafactor.
        Adafactor = "galore_adafactor",
        /// AdamW, updated layer by layer.
        AdamWLayerwise = "galore_adamw_layerwise",
        /// AdamW with an 8-bit state, updated layer by layer.
        AdamW8bitLayerwise = "galore_adamw_8bit_layerwise",
        /// Adafactor, updated layer by layer.
        AdafactorLayerwise = "galore_adafactor_layerwise",
    }
}

impl GaloreOptim {
    /// Whether layers are updated during the backward pass, one by one.
    #[must_use]
    pub const fn is_layerwise(self) -> bool {
        match self {
            Self::AdamW | Self::AdamW8bit | Self::Adafactor => false,
            Self::AdamWLayerwise | Self::AdamW8bitLayerwise | Self::AdafactorLayerwise => true,
        }
    }
}

choice! {
    /// The side of the gradient that is projected.
    GaloreProjType {
        /// The shorter side.
        Std = "std",
        /// The longer side.
        ReverseStd = "reverse_std",
        /// Columns.
        Right = "right",
        /// Rows.
        Left = "left",
        /// Both.
        Full = "full",
    }
}
