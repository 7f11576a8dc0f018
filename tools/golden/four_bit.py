"""Makes tests/data/golden/quant/more.safetensors: what bitsandbytes computes on a CPU for cases
that the other files of the folder lack.

Versions: bitsandbytes 0.50.2, torch 2.15.0, safetensors 0.8.0; one thread. Run:
python3 four_bit.py OUTPUT.safetensors

- `w` bf16 [75, 256]: heavy tails, 300 blocks, so that the scales fill one block of 256 and begin
  another; seed 20261124. Quantized as f32.
- `<kind>.packed`, `.absmax_codes`, `.absmax_nested`, `.absmax_offset`, `.dequant_sum` for nf4 and
  fp4, double quantized; `dequant_sum` f64 [1]: the sum of the dequantized values in f64.
- `odd.<kind>.packed`, `.absmax`: the first 1,000 values of `w`, whose last block is short.
- `signed.codes`, `.absmax`, `unsigned.codes`, `.absmax`: the first 1,000 values (their sizes, for
  the unsigned map) in the dynamic map, blocks of 256.
"""

import sys

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.manual_seed(20261124)
w = (torch.randn(75, 256) * torch.exp(torch.randn(75, 1))).to(torch.bfloat16)
x = w.float()
out = {"w": w}
for kind in ("nf4", "fp4"):
    packed, state = F.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type=kind)
    out[f"{kind}.packed"] = packed.reshape(-1)
    out[f"{kind}.absmax_codes"] = state.absmax.clone()
    out[f"{kind}.absmax_nested"] = state.state2.absmax.clone()
    out[f"{kind}.absmax_offset"] = state.offset.reshape(1).clone()
    back = F.dequantize_4bit(packed, state)
    out[f"{kind}.dequant_sum"] = back.double().sum().reshape(1)
    odd = x.reshape(-1)[:1000].contiguous()
    packed, state = F.quantize_4bit(odd, blocksize=64, compress_statistics=False, quant_type=kind)
    out[f"odd.{kind}.packed"] = packed.reshape(-1)
    out[f"odd.{kind}.absmax"] = state.absmax.clone()
for name, signed in (("signed", True), ("unsigned", False)):
    values = odd if signed else odd.abs()
    codes, state = F.quantize_blockwise(values, F.create_dynamic_map(signed), blocksize=256)
    out[f"{name}.codes"] = codes
    out[f"{name}.absmax"] = state.absmax.clone()
save_file(out, sys.argv[1])
