"""Makes tests/data/golden/four_bit: small models that transformers saved with four-bit weights of
bitsandbytes, and the logits of what bitsandbytes makes of their blocks.

Versions: torch 2.15.0, transformers 5.24.0, bitsandbytes 0.50.2. Run: python3 four_bit_folder.py OUTPUT_DIR

Two Llama models of one layer (hidden 96, intermediate 160, vocabulary 120: rows that are no whole
blocks): `nf4-double` of a bfloat16 model with scales that are quantized, `fp4` of a float16 one.
`expected.safetensors` has `ids` i64 [1, 12] and `logits` f32 [1, 12, 120]: blocks dequantized to the
number format of the model, everything else in float32. Blocks are dequantized as one row: on a CPU
this bitsandbytes starts a block anew with each row, where the quantization (and a GPU) does not.
"""

import sys
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
out = Path(sys.argv[1])
for name, kind, double, dtype in (
    ("nf4-double", "nf4", True, torch.bfloat16),
    ("fp4", "fp4", False, torch.float16),
):
    torch.manual_seed(20261201)
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    plain = out / "plain"
    LlamaForCausalLM(config).to(dtype).save_pretrained(plain)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantization, dtype=dtype)
    model.save_pretrained(out / name)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(".weight") and key.count(".proj") == 0:
            module = model.get_submodule(key.removesuffix(".weight"))
            if isinstance(module, bnb.nn.Linear4bit):
                quant_state = module.weight.quant_state
                shape, quant_state.shape = quant_state.shape, torch.Size([1, quant_state.shape.numel()])
                value = bnb.functional.dequantize_4bit(module.weight.data, quant_state).reshape(shape)
                assert value.dtype == dtype
            state[key] = value.float()
    dense = LlamaForCausalLM(config).float()
    dense.load_state_dict(state)
    ids = torch.randint(0, 120, (1, 12))
    with torch.inference_mode():
        logits = dense(input_ids=ids).logits
    save_file({"ids": ids, "logits": logits.contiguous()}, out / name / "expected.safetensors")
    (out / name / "generation_config.json").unlink(missing_ok=True)
    for file in plain.iterdir():
        file.unlink()
    plain.rmdir()
