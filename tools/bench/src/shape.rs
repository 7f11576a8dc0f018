//! `forgelm-bench shape MODEL`: what need not be computed costs nothing. Three ratios of step times
//! of one model, two adapters on q and v, variants alternating in one run:
//!
//! - prompts: three quarters of each sequence are a prompt that is not trained; only trained rows
//!   meet the head;
//! - layers: only the upper half of the layers is adapted; the lower half has no backward pass;
//! - ragged: sequences of 16 to 256 tokens, against as many tokens in sequences of equal length, a
//!   token; nothing is padded.

use std::path::Path;
use std::sync::Arc;

use forgelm_data::Sequence;
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Decoder, LoraConfig};

use crate::train::{decoder_of, sequence, steps};

const USAGE: &str = "usage: forgelm-bench shape MODEL [--threads N]";
const RANK: usize = 8;
const LEN: usize = 256;
const N_SEQUENCES: usize = 4;
/// Rounds over all variants; the best counts.
const ROUNDS: usize = 3;

/// Name, modules, sequences.
struct Variant {
    name: &'static str,
    modules: Vec<String>,
    train: Vec<Sequence>,
}

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let (model, n_threads) = match arguments {
        [model] => (model, 1),
        [model, flag, n] if flag == "--threads" => (model, n.parse().map_err(|_| USAGE)?),
        _ => return Err(USAGE.to_owned()),
    };
    let decoder = decoder_of(Path::new(model), Arc::new(Cpu::new(n_threads)), Compute::Bf16)?;
    let variants = variants(&decoder);
    let mut best = [f64::INFINITY; 4];
    for _ in 0..ROUNDS {
        for (best, variant) in best.iter_mut().zip(&variants) {
            let modules: Vec<_> = variant.modules.iter().map(String::as_str).collect();
            let config = LoraConfig::new(RANK, 16.0, &modules);
            steps(&decoder, config, &variant.train, 2, &mut |step, _, times| {
                if step > 0 {
                    *best = best.min(times.seconds(n_threads));
                }
            })?;
        }
    }
    let n_tokens = |variant: &Variant| -> f64 {
        variant.train.iter().map(|sequence| sequence.tokens.len() as f64).sum()
    };
    for (variant, seconds) in variants.iter().zip(best) {
        let n = n_tokens(variant);
        let per_token = seconds / n;
        let ratio = per_token / (best[0] / n_tokens(&variants[0]));
        println!(
            "{:8} {n:6.0} tokens {:8.3} s {ratio:6.2} of `whole`, a token",
            variant.name, seconds
        );
    }
    let ragged = &variants[3];
    let padded = (ragged.train.len() * LEN) as f64 / n_tokens(ragged);
    println!(
        "a batch padded to its longest sequence would cost {padded:.2} times as much as `ragged`"
    );
    Ok(())
}

fn variants(decoder: &Decoder) -> [Variant; 4] {
    let config = decoder.config();
    let all = || ["q_proj", "v_proj"].map(str::to_owned).to_vec();
    let n_layers = config.num_hidden_layers;
    let upper = (n_layers / 2..n_layers)
        .flat_map(|i| ["q", "v"].map(|m| format!("model.layers.{i}.self_attn.{m}_proj")))
        .collect();
    let equal = |n_prompt| {
        (0..N_SEQUENCES).map(|i| sequence(i, LEN, n_prompt, config.vocab_size)).collect::<Vec<_>>()
    };
    let ragged =
        [256, 16, 200, 48, 96, 160, 24, 224].map(|len| sequence(len, len, 0, config.vocab_size));
    [
        Variant { name: "whole", modules: all(), train: equal(0) },
        Variant { name: "prompts", modules: all(), train: equal(LEN * 3 / 4) },
        Variant { name: "layers", modules: upper, train: equal(0) },
        Variant { name: "ragged", modules: all(), train: ragged.to_vec() },
    ]
}
