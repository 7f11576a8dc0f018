//! A Hugging Face folder written as an F32 GGUF file, by the rules of the `llama.cpp` project's
//! converter, apart from the program's own writer: the two must agree.

use std::collections::BTreeMap;
use std::path::Path;

use forgelm_artifact::Disk;
use forgelm_artifact::gguf::Value;
use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::gguf::write::{PlannedTensor, to_writer_with};
use forgelm_kernels_api::RowSource as _;
use forgelm_model::{Linear, ModelConfig, OpenModel, Role, RopeScaling, TensorStore};
use forgelm_tensor::{Dtype, dequantize};

/// The numbers of a tensor.
pub fn values(store: &dyn TensorStore, name: &str) -> Vec<f32> {
    let tensor = store.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let mut values = vec![0.0; tensor.shape.iter().product()];
    dequantize(tensor.dtype, tensor.bytes, &mut values).expect("numbers");
    values
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn architecture(config: &ModelConfig) -> &'static str {
    match config.model_type.as_str() {
        "llama" | "mistral" | "mixtral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "qwen2_moe" => "qwen2moe",
        "qwen3_moe" => "qwen3moe",
        "gemma" => "gemma",
        "gemma2" => "gemma2",
        "gemma3_text" => "gemma3",
        "phi3" => "phi3",
        other => panic!("no rules for {other}"),
    }
}

pub fn write(open: &OpenModel, path: &Path) {
    let (config, dims) = (open.config(), open.config().dims());
    let arch = architecture(config);
    let mut builder = metadata(Builder::new().text("general.architecture", arch), config, arch);
    let head = (!config.tie_word_embeddings).then_some(Role::Head);
    let mut stacked: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for role in Role::always(config).into_iter().chain(head) {
        let mut numbers = values(open.store(), &role.hf_name(config.module_names()));
        let name = role.gguf_name(config.norms.post_norms);
        let mut shape = role.shape(&dims);
        match role {
            Role::Norm(..) | Role::FinalNorm if config.model_type.starts_with("gemma") => {
                numbers.iter_mut().for_each(|w| *w += 1.0);
            }
            Role::Linear(_, Linear::Q | Linear::K) | Role::Bias(_, Linear::Q | Linear::K)
                if arch == "llama" =>
            {
                let width = numbers.len() / shape[0];
                numbers = interleaved(&numbers, width, dims.d);
            }
            Role::Linear(_, Linear::Expert(..)) => {
                shape.insert(0, dims.e);
                stacked.entry(name).or_insert((shape, Vec::new())).1.extend(numbers);
                continue;
            }
            // The tool drops axes of length 1.
            Role::Linear(_, Linear::SharedExpertGate) => shape = vec![dims.c],
            _ => {}
        }
        builder = builder.tensor(&name, Dtype::F32, &shape, bytes(&numbers));
    }
    for (name, (shape, numbers)) in stacked {
        builder = builder.tensor(&name, Dtype::F32, &shape, bytes(&numbers));
    }
    if let RopeScaling::Longrope { short_factor, long_factor, .. } = &config.rope.scaling {
        for (name, factors) in [("short", short_factor), ("long", long_factor)] {
            let name = format!("rope_factors_{name}.weight");
            builder = builder.tensor(&name, Dtype::F32, &[factors.len()], bytes(factors));
        }
    }
    builder.write(&Disk::real(), path).expect("it can be written");
}

/// The file that the program's own writer makes, all in f32.
pub fn write_own(open: &OpenModel, path: &Path) {
    let model = open.to_gguf().expect("a model that has a place in such a file");
    let planned: Vec<PlannedTensor> = model
        .tensors
        .iter()
        .map(|t| PlannedTensor { name: t.name.clone(), dtype: Dtype::F32, shape: t.shape.clone() })
        .collect();
    let mut file = Vec::new();
    to_writer_with(&mut file, &model.metadata, &planned, &mut |i, w| {
        let tensor = &model.tensors[i];
        // A few rows at a time, as they are read when they are quantized.
        for first in (0..tensor.n_rows()).step_by(3) {
            let n_rows = (tensor.n_rows() - first).min(3);
            let mut rows = vec![0.0; n_rows * tensor.n_cols()];
            tensor.read_rows(first, &mut rows);
            w.write_all(&bytes(&rows))?;
        }
        Ok(())
    })
    .expect("memory");
    forgelm_artifact::write::atomic(path, &file).expect("it can be written");
}

fn metadata(mut builder: Builder, config: &ModelConfig, arch: &str) -> Builder {
    let mut whole = vec![
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rotary_dim()),
        ("vocab_size", config.vocab_size),
    ];
    whole.extend(config.sliding_window.map(|w| ("attention.sliding_window", w)));
    if arch == "gemma3" {
        whole.push(("attention.sliding_window_pattern", 2));
    }
    if let Some(experts) = &config.experts {
        whole.push(("expert_count", experts.num_experts));
        whole.push(("expert_used_count", experts.num_experts_per_tok));
        if arch != "llama" {
            whole.push(("expert_feed_forward_length", experts.intermediate_size));
        }
        let shared = experts.shared_intermediate_size;
        whole.extend(shared.map(|f| ("expert_shared_feed_forward_length", f)));
    }
    let mut real = vec![
        ("attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        ("rope.freq_base", config.rope.theta as f32),
    ];
    real.extend(config.attention.soft_cap.map(|cap| ("attn_logit_softcapping", cap)));
    real.extend(config.final_soft_cap.map(|cap| ("final_logit_softcapping", cap)));
    match &config.rope.scaling {
        RopeScaling::Linear { factor } => {
            builder = builder.text(&format!("{arch}.rope.scaling.type"), "linear");
            real.push(("rope.scaling.factor", *factor as f32));
        }
        RopeScaling::Longrope { original_max_position_embeddings, attention_factor, .. } => {
            whole.push(("rope.scaling.original_context_length", *original_max_position_embeddings));
            real.push(("rope.scaling.attn_factor", *attention_factor as f32));
        }
        _ => {}
    }
    for (key, value) in whole {
        builder = builder.metadata(&format!("{arch}.{key}"), Value::U32(value as u32));
    }
    for (key, value) in real {
        builder = builder.metadata(&format!("{arch}.{key}"), Value::F32(value));
    }
    builder
}

/// Per head: (2, d / 2) rows become (d / 2, 2).
fn interleaved(values: &[f32], width: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in values.chunks_exact(head_dim * width) {
        for j in 0..head_dim / 2 {
            for row in [j, j + head_dim / 2] {
                out.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    out
}
