"""Makes tests/data/golden/gguf/k_quants.safetensors: what ggml's reference functions write as Q4_K
and Q6_K, and what the gguf package's numpy reference writes as Q5_0.

Versions: libggml-python 0.20.2.post1 (ggml's own library, called directly), gguf 0.19.0,
numpy 2.4.6, safetensors 0.8.0; seed 20261130. Run: python3 k_quants.py OUTPUT.safetensors

- `w` f32 [24, 256]: normal numbers of sizes 1e-3 to 1e2 (rows 0-9), heavy tails (10-13), all of one
  sign (14, 15), numbers on a grid, so that halves are rounded (16, 17), a few outliers in small
  numbers (18, 19), groups of one number and of zeros between others (20, 21), zeros (22), numbers
  at the edge of half precision's smallest scale (23).
- `q4_k`, `q6_k` u8 [24, 144] and [24, 210]: the bytes of `quantize_row_<type>_ref`.
- `q5_0` u8 [24, 176].
"""

import ctypes
import pathlib
import sys

import gguf
import libggml
import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(20261130)
w = rng.standard_normal((24, 256)).astype(np.float32)
w[:10] *= np.logspace(-3, 2, 10, dtype=np.float32)[:, None]
w[10:14] = rng.standard_t(2, (4, 256)).astype(np.float32) * 0.02
w[14], w[15] = np.abs(w[14]) + 0.5, -np.abs(w[15]) - 0.5
w[16], w[17] = rng.integers(-15, 16, 256) / 2, rng.integers(-64, 65, 256) / 64
w[18:20] *= 1e-3
w[18, ::37], w[19, ::101] = 3.0, -7.0
w[20, 32:64], w[20, 96:128], w[20, 200:232] = 0.25, -0.25, 0.0
w[21, :240] = 0.0
w[22] = 0.0
w[23] *= 3e-7

library = next(pathlib.Path(libggml.__file__).parent.rglob("libggml-base.so*"))
ggml = ctypes.CDLL(str(library))
out = {"w": w}
for name, n_bytes in (("q4_K", 144), ("q6_K", 210)):
    packed = np.zeros((24, n_bytes), np.uint8)
    quantize = getattr(ggml, f"quantize_row_{name}_ref")
    quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    quantize(w.ctypes.data, packed.ctypes.data, w.size)
    out[name.lower()] = packed
out["q5_0"] = gguf.quantize(w, gguf.GGMLQuantizationType.Q5_0)
save_file(out, sys.argv[1])
