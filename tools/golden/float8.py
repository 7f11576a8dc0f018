"""Makes tests/data/golden/float8: what torch makes of floats of eight bits, and small models in FP8 with
the logits of transformers.

Versions: torch 2.15.0, transformers 5.24.0, compressed-tensors 0.20.1, accelerate 1.16.0, safetensors
0.8.0. Run: python3 float8.py OUTPUT_DIR

`codes.safetensors`: all 256 codes `e4m3` and `e5m2`, and their values `*.f32`. `blocks.safetensors`: `w`
[11, 13] in E4M3, `scales` f32 [3, 3] of blocks of 4 rows and 5 columns, and `dequantized` f32 [11, 13],
a product in f32.

Two Llama models of one layer (hidden 96, intermediate 192, vocabulary 120), each weight of a linear layer
but the head in E4M3, the rest in bfloat16. `fp8-block` is of the kind `fp8`, with a scale for each block of
32 x 48 (transformers asks for whole blocks); `channel` of the kind `compressed-tensors`, with a scale for
each row. `expected.safetensors` has `ids` i64 [1, 12] and `logits` f32 [1, 12, 120] of the model as
transformers reads the folder on a processor, in float32: weights are dequantized then.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

BLOCK = (32, 48)
FINE_GRAINED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
    "modules_to_not_convert": ["lm_head"],
}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
            "output_activations": None,
        }
    },
}


def widened(scales, rows, cols, shape):
    """A scale for each element."""
    return scales.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[: shape[0], : shape[1]]


def quantized(weight, rows, cols):
    """Codes and scales: the largest of each block becomes 448."""
    n_rows, n_cols = -(-weight.shape[0] // rows), -(-weight.shape[1] // cols)
    scales = torch.empty(n_rows, n_cols)
    for i in range(n_rows):
        for j in range(n_cols):
            block = weight[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
            scales[i, j] = block.abs().max() / 448.0
    return (weight / widened(scales, rows, cols, weight.shape)).to(torch.float8_e4m3fn), scales


def codes(out):
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    tensors = {}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        tensors[name] = every.clone().view(dtype)
        tensors[f"{name}.f32"] = tensors[name].to(torch.float32)
    save_file(tensors, out / "codes.safetensors")


def blocks(out):
    w, scales = quantized(torch.randn(11, 13), 4, 5)
    dequantized = w.to(torch.float32) * widened(scales, 4, 5, w.shape)
    save_file({"w": w, "scales": scales, "dequantized": dequantized}, out / "blocks.safetensors")


def model(folder, quantization, suffix, block, **arguments):
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    folder.mkdir(exist_ok=True)
    state, dense = {}, {}
    for name, value in LlamaForCausalLM(config).state_dict().items():
        if name.endswith("_proj.weight"):
            rows, cols = block[0], block[1] or value.shape[1]
            state[name], state[name + suffix] = quantized(value.float(), rows, cols)
            dense[name] = state[name].float() * widened(state[name + suffix], rows, cols, value.shape)
        else:
            state[name] = value.bfloat16()
            dense[name] = state[name].float()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    description = config.to_dict() | {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "quantization_config": quantization,
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments)
    for name, value in dense.items():
        found = read.get_parameter(name)
        assert found.dtype == torch.float32 and torch.equal(found.data, value), name
    ids = torch.randint(0, 120, (1, 12))
    with torch.inference_mode():
        logits = read(input_ids=ids).logits
    save_file({"ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")


torch.set_num_threads(1)
torch.manual_seed(20261202)
out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
codes(out)
blocks(out)
model(out / "fp8-block", FINE_GRAINED, "_scale_inv", BLOCK)
dequantize = CompressedTensorsConfig(dequantize=True)
model(out / "channel", CHANNEL, "_scale", (1, None), quantization_config=dequantize)
