//! A guess of the memory of a model that is not here: sizes from its name, by rule of thumb.

use super::{FitCheck, Verdict, n_target_modules};
use forgelm_config::{ComputeDtype, Run, TrainerType};
use forgelm_model::MemoryPlan;

/// Width, layers and width of the MLP.
type Sizes = (u64, u64, u64);

/// Sizes by the first key that stands in a name.
const HINTS: [(&str, Sizes); 10] = [
    ("1b", (2048, 16, 8192)),
    ("3b", (3072, 28, 8192)),
    ("7b", (4096, 32, 11008)),
    ("8b", (4096, 32, 14336)),
    ("13b", (5120, 40, 13824)),
    ("14b", (5120, 40, 13824)),
    ("30b", (6656, 60, 17920)),
    ("34b", (7168, 48, 20480)),
    ("70b", (8192, 80, 28672)),
    ("72b", (8192, 80, 29568)),
];
const NO_HINT: Sizes = (4096, 32, 11008);
const VOCABULARY: u64 = 32_000;

/// Sizes that a name hints at: the first key of the list that stands in it, not after a digit or
/// point and not before a digit or letter.
fn hint(name: &str) -> Option<Sizes> {
    let name = name.to_lowercase();
    let stands = |key: &str| {
        name.match_indices(key).any(|(at, _)| {
            let before = name[..at].chars().next_back();
            let after = name[at + key.len()..].chars().next();
            !before.is_some_and(|c| c.is_ascii_digit() || c == '.')
                && !after.is_some_and(char::is_alphanumeric)
        })
    };
    HINTS.iter().find(|(key, _)| stands(key)).map(|(_, sizes)| *sizes)
}

/// Number of weights: embedding, and in each layer attention, MLP and norms.
fn n_params((h, l, i): Sizes) -> u64 {
    VOCABULARY * h + l * (4 * h * h + 3 * h * i + 2 * h) + h
}

/// Sequences that a record becomes.
fn sequences_of_a_record(run: &Run) -> u64 {
    match run.training.trainer_type {
        TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo => 2,
        TrainerType::Sft | TrainerType::Kto | TrainerType::Grpo => 1,
    }
}

/// The guess, with every row as long as allowed.
pub(super) fn estimate(run: &Run, held: u64) -> FitCheck {
    let name = &run.model.name_or_path;
    let sizes = hint(name).unwrap_or(NO_HINT);
    let (h, l, _) = sizes;
    let n_params = n_params(sizes);
    let (half_bytes, quant_scheme) = match run.training.compute_dtype {
        _ if run.model.load_in_4bit => (1, "4bit"),
        ComputeDtype::Float32 => (8, "fp32"),
        ComputeDtype::Auto | ComputeDtype::Bfloat16 => (4, "bf16"),
    };
    let n_trained = 2 * run.lora.r as u64 * h * n_target_modules(run) * l;
    let tokens = run.training.per_device_train_batch_size as u64
        * run.model.max_length as u64
        * sequences_of_a_record(run);
    let is_recomputed = run.training.gradient_checkpointing == Some(true);
    let kept_layers = if is_recomputed { l.isqrt().max(1) } else { 2 * l };
    let mut memory = MemoryPlan::default();
    for (name, bytes) in [
        (super::WEIGHTS, n_params * half_bytes / 2),
        (super::ADAPTER[0], 4 * n_trained),
        (super::ADAPTER[1], 4 * n_trained),
        (super::MOMENTS, 8 * n_trained),
        ("activations", tokens * 12 * h * kept_layers),
        (super::PROGRAM, held),
    ] {
        memory.add(name, usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    let mut check = FitCheck::of(memory, held, n_params, None);
    check.is_guess = true;
    check.quant_scheme = quant_scheme;
    if hint(name).is_none() {
        check.notes.push("the model's name says no size: a model of 7 billion is assumed".into());
    }
    check
}

/// The largest size of the list whose QLoRA run, one row at a time and all else as by default, takes
/// a share of `available` that counts as fitting.
pub(crate) fn qlora_largest(available: u64, held: u64) -> Option<&'static str> {
    let config = "model: {name_or_path: 1b, load_in_4bit: true}\n\
                  training: {per_device_train_batch_size: 1}\n\
                  data: {dataset_name_or_path: rows.jsonl}\n";
    let mut run = forgelm_config::load(config, "rule of thumb").ok()?.run;
    let fits = |(key, _): &&(&'static str, Sizes)| {
        run.model.name_or_path = (*key).to_owned();
        let total = estimate(&run, held).total();
        Verdict::of(total, Some(available)) == Verdict::Fits
    };
    HINTS.iter().filter(fits).map(|(key, _)| *key).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hint_at_sizes() {
        for (name, width) in [
            ("meta-llama/Llama-3.2-1B", Some(2048)),
            ("Qwen2.5-7B-Instruct", Some(4096)),
            ("org/model-13b", Some(5120)),
            ("org/model-70b-chat", Some(8192)),
            ("Qwen/Qwen2.5-1.5B", None),
            ("org/model-31b", None),
            ("org/7bit", None),
            ("HuggingFaceTB/SmolLM2-135M", None),
        ] {
            assert_eq!(hint(name).map(|sizes| sizes.0), width, "{name}");
        }
        assert_eq!(HINTS.len(), 10);
    }

    #[test]
    fn more_memory_never_fits_less() {
        assert_eq!(qlora_largest(1 << 28, 0), None);
        let place = |gib: u64| {
            let key = qlora_largest(gib << 30, 0);
            key.map(|key| HINTS.iter().position(|(other, _)| *other == key))
        };
        let places: Vec<_> = [1, 4, 8, 16, 32, 64, 128, 1024].map(place).into();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(places.last(), Some(&Some(Some(9))), "the largest fits into a tebibyte");
        // Half a byte for each of its 6.6 billion weights alone are 3.3 GB.
        assert!(!matches!(qlora_largest(3 << 30, 0), Some("7b" | "8b" | "13b")));
    }

    /// By hand: 32000 h + 32 (4 h^2 + 3 h 11008 + 2 h) + h with h = 4096.
    #[test]
    fn a_model_of_seven_billion_has_as_many_weights() {
        assert_eq!(n_params(NO_HINT), 6_607_343_616);
    }
}
