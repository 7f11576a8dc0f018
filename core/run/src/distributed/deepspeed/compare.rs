//! What the run's config says of the things that a file of DeepSpeed may say too.

use forgelm_config::{ComputeDtype, LrSchedulerType, Optim, Run};
use serde_json::{Value, json};

/// What the config of the run says.
pub(super) struct Said {
    /// Its key.
    pub(super) key: &'static str,
    /// Its value, for a person.
    pub(super) shown: String,
    /// The words of DeepSpeed for it; none where it has none.
    pub(super) accepted: Vec<Value>,
}

impl Said {
    fn new(key: &'static str, shown: impl ToString, accepted: Vec<Value>) -> Self {
        Self { key, shown: shown.to_string(), accepted }
    }

    fn number(key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        Self::new(key, value.to_string(), vec![value])
    }

    /// Whether a file's value says the same.
    pub(super) fn is(&self, found: &Value) -> bool {
        self.accepted.iter().any(|accepted| is_same(found, accepted))
    }
}

/// Numbers may be written in several ways, words in capitals.
fn is_same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => {
            let (Some(a), Some(b)) = (found.as_f64(), expected.as_f64()) else { return false };
            (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
        }
        (Value::String(found), Value::String(expected)) => found.eq_ignore_ascii_case(expected),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| is_same(a, b))
        }
        (found, expected) => found == expected,
    }
}

/// Of a step, however many processes there are.
pub(super) fn batch(run: &Run) -> Said {
    let training = &run.training;
    let (size, accumulation) =
        (training.per_device_train_batch_size, training.gradient_accumulation_steps);
    Said::new(
        "training.per_device_train_batch_size * gradient_accumulation_steps",
        size * accumulation,
        vec![json!(size * accumulation)],
    )
}

pub(super) fn micro_batch(run: &Run) -> Said {
    let key = "training.per_device_train_batch_size";
    Said::number(key, run.training.per_device_train_batch_size)
}

pub(super) fn accumulation(run: &Run) -> Said {
    let key = "training.gradient_accumulation_steps";
    Said::number(key, run.training.gradient_accumulation_steps)
}

pub(super) fn clipping(run: &Run) -> Said {
    Said::number("training.max_grad_norm", run.training.max_grad_norm)
}

/// `Adam` decays as `AdamW` does there, unless `adam_w_mode` is false.
pub(super) fn optimizer(run: &Run) -> Said {
    let training = &run.training;
    if training.galore_enabled {
        return Said::new("training.galore_optim", training.galore_optim, Vec::new());
    }
    let accepted = match training.optim {
        Optim::AdamW => vec![json!("AdamW"), json!("Adam")],
        Optim::AdamW8bit | Optim::Adafactor => Vec::new(),
    };
    Said::new("training.optim", training.optim, accepted)
}

pub(super) fn learning_rate(run: &Run) -> Said {
    Said::number("training.learning_rate", run.training.learning_rate)
}

pub(super) fn weight_decay(run: &Run) -> Said {
    Said::number("training.weight_decay", run.training.weight_decay)
}

pub(super) fn betas(run: &Run) -> Said {
    let rule = crate::settings::optimizer(run);
    let betas = json!([rule.beta1, rule.beta2]);
    Said::new("training.optim", training_optim(run), vec![betas])
}

pub(super) fn epsilon(run: &Run) -> Said {
    // Of the single precision in which it is added: as it is written.
    let eps = crate::settings::optimizer(run).eps.to_string().parse::<f64>().unwrap_or_default();
    Said::new("training.optim", training_optim(run), vec![json!(eps)])
}

/// What the optimizers here always do.
pub(super) fn yes(run: &Run) -> Said {
    Said::new("training.optim", training_optim(run), vec![json!(true)])
}

fn training_optim(run: &Run) -> String {
    run.training.optim.to_string()
}

/// `WarmupLR` stays where its warm-up ends.
pub(super) fn scheduler(run: &Run) -> Said {
    let schedule = run.training.lr_scheduler_type;
    let name = match schedule {
        LrSchedulerType::Constant => "WarmupLR",
        LrSchedulerType::Linear => "WarmupDecayLR",
        LrSchedulerType::Cosine => "WarmupCosineLR",
    };
    Said::new("training.lr_scheduler_type", schedule, vec![json!(name)])
}

pub(super) fn warmup_begin(run: &Run) -> Said {
    Said::new("training.warmup_ratio", run.training.warmup_ratio, vec![json!(0)])
}

pub(super) fn last_rate(run: &Run) -> Said {
    Said::new("training.lr_scheduler_type", run.training.lr_scheduler_type, vec![json!(0)])
}

/// A share of the steps, whose number the data decides.
pub(super) fn warmup_steps(run: &Run) -> Said {
    let ratio = run.training.warmup_ratio;
    let accepted = if ratio > 0.0 { Vec::new() } else { vec![json!(0)] };
    Said::new("training.warmup_ratio", ratio, accepted)
}

pub(super) fn warmup_type(run: &Run) -> Said {
    Said::new("training.warmup_ratio", run.training.warmup_ratio, vec![json!("linear")])
}

pub(super) fn total_steps(run: &Run) -> Said {
    let steps = run.training.max_steps;
    let accepted = if steps > 0 { vec![json!(steps)] } else { Vec::new() };
    Said::new("training.max_steps", steps, accepted)
}

pub(super) fn bfloat16(run: &Run) -> Said {
    let dtype = run.training.compute_dtype;
    let accepted = match dtype {
        ComputeDtype::Auto => vec![json!(true), json!(false)],
        ComputeDtype::Float32 => vec![json!(false)],
        ComputeDtype::Bfloat16 => vec![json!(true)],
    };
    Said::new("training.compute_dtype", dtype, accepted)
}
