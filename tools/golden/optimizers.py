"""Steps of the optimizers that ours are compared with: core/train/tests/data/optimizers.*.

AdamW by torch, AdamW with 8-bit moments by bitsandbytes on a CPU, Adafactor by
transformers with the options of its Trainer, GaLore by galore-torch over each of them.

The gradient of step t (from 0) is `grad{t % 3}` times `scale[t]`, a power of two.
Run: python tools/golden/optimizers.py
(torch, transformers, bitsandbytes, galore-torch, safetensors)
"""

import json
import math
import pathlib
import types

import bitsandbytes
import bitsandbytes.backends.cpu.ops
import galore_torch
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parents[2] / "core/train/tests/data"
N_STEPS = 12
SCALE = [2.0 ** (t % 5 - 2) for t in range(N_STEPS)]
LR, WEIGHT_DECAY = 0.01, 0.1
gen = torch.Generator().manual_seed(20240508)
torch.set_num_threads(1)
torch.cuda.synchronize = lambda *_: None  # galore-torch calls it without asking where it runs


def nearest(values, code, absmax_out, out, blocksize):
    """The published rule, as in bitsandbytes' plain path: the nearest number of the map. Its
    compiled quantizer for CPUs searches a table and is off by up to seven places (0.50.2)."""
    flat = torch.nn.functional.pad(values.reshape(-1), (0, -values.numel() % blocksize))
    blocks = flat.view(-1, blocksize)
    absmax = blocks.abs().max(dim=1)[0]
    parts = (blocks / absmax[:, None]).reshape(-1)[: values.numel()]
    codes = torch.argmin((parts[:, None].double() - code.double()).abs(), dim=1)
    out.copy_(codes.to(torch.uint8).reshape(out.shape))
    absmax_out.copy_(absmax)


bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct = nearest
svd_of_torch = torch.linalg.svd


def svd(a, full_matrices):
    """With the signs that ours has: the largest component on the shorter side is positive.
    Moments outlive a projection, so that later steps depend on signs."""
    u, s, vh = svd_of_torch(a, full_matrices=full_matrices)
    short = u.T if a.shape[0] <= a.shape[1] else vh
    sign = torch.sign(torch.gather(short, 1, short.abs().argmax(1, keepdim=True))).view(-1)
    return u * sign, s, vh * sign[:, None]


torch.linalg.svd = svd


def normal(*shape):
    return torch.randn(*shape, generator=gen)


def graded(m, n):
    """A matrix whose singular values fall by a third each: subspaces without doubt."""
    k = min(m, n)
    u = torch.linalg.qr(normal(m, k).double())[0]
    v = torch.linalg.qr(normal(n, k).double())[0]
    return ((u * (5.0 * 0.66 ** torch.arange(k))) @ v.T).float()


tensors, cases = {}, {}


def run(name, build, params, grads, kept):
    """Runs the optimizer that `build` makes of the parameters; keeps them after some steps."""
    for p_name, p in params.items():
        tensors[f"{name}.{p_name}.start"] = p.detach().clone()
        for i, g in enumerate(grads[p_name]):
            tensors[f"{name}.{p_name}.grad{i}"] = g
    params = {k: torch.nn.Parameter(p.clone()) for k, p in params.items()}
    optimizer = build(params)
    for t in range(N_STEPS):
        for p_name, p in params.items():
            p.grad = grads[p_name][t % 3] * SCALE[t]
        if isinstance(optimizer, galore_torch.GaLoreAdamW):
            # The paper adds eps to the corrected root; galore-torch to the other, unless told so.
            for group in optimizer.param_groups:
                group["eps"] = 1e-6 * math.sqrt(1.0 - 0.999 ** (t + 1))
        optimizer.step()
        if t + 1 in kept:
            for p_name, p in params.items():
                tensors[f"{name}.{p_name}.after{t + 1}"] = p.detach().clone()
    return params, optimizer


def flat(shapes):
    params = {k: normal(*shape) for k, shape in shapes.items()}
    # Sizes over many powers of ten, as gradients have, and exact zeros.
    grads = {}
    for k, shape in shapes.items():
        grads[k] = [normal(*shape) * 10.0 ** (-4 * torch.rand(*shape, generator=gen)) for _ in range(3)]
        grads[k][0].view(-1)[::7] = 0.0
    return params, grads


def two_groups(params):
    """As Trainer groups them: biases and norms do not decay."""
    exempt = lambda k: "bias" in k or "norm" in k
    return [
        {"params": [p for k, p in params.items() if not exempt(k)], "weight_decay": WEIGHT_DECAY},
        {"params": [p for k, p in params.items() if exempt(k)], "weight_decay": 0.0},
    ]


shapes = {"q_proj.weight": (17, 250), "q_proj.bias": (30,), "small.weight": (12, 20)}
params, grads = flat(shapes)
run("adamw", lambda p: torch.optim.AdamW(two_groups(p), lr=LR), params, grads, (12,))
p8, o8 = run("adamw_8bit", lambda p: bitsandbytes.optim.AdamW8bit(two_groups(p), lr=LR), params, grads, (12,))
state = o8.state[p8["q_proj.weight"]]
for k in ("state1", "state2", "absmax1", "absmax2"):
    tensors[f"adamw_8bit.q_proj.weight.{k}"] = state[k].clone()
tensors["map.signed"], tensors["map.unsigned"] = state["qmap1"].clone(), state["qmap2"].clone()
adafactor = lambda p: transformers.Adafactor(two_groups(p), lr=LR, scale_parameter=False, relative_step=False)
run("adafactor", adafactor, params, grads, (12,))

RANK, GAP, FACTOR = 4, 5, 0.25


def galore(kind, proj_type, rank, **options):
    def build(p):
        group = {"params": list(p.values()), "rank": rank, "update_proj_gap": GAP, "scale": FACTOR, "proj_type": proj_type}
        return kind([group], lr=LR, weight_decay=WEIGHT_DECAY, **options)

    return build


for side, shape in {"tall": (40, 24), "wide": (24, 40)}.items():
    params = {"w": normal(*shape)}
    grads = {"w": [graded(*shape) for _ in range(3)]}
    for proj_type in ("std", "reverse_std", "right", "left", "full"):
        name = f"galore_adamw.{side}.{proj_type}"
        run(name, galore(galore_torch.GaLoreAdamW, proj_type, RANK, no_deprecation_warning=True), params, grads, (12,))
        name = f"galore_adafactor.{side}.{proj_type}"
        options = {"scale_parameter": False, "relative_step": False}
        run(name, galore(galore_torch.GaLoreAdafactor, proj_type, RANK, **options), params, grads, (12,))

# 129 x 32 projected numbers: enough for 8 bits.
params = {"w": normal(129, 36)}
grads = {"w": [normal(129, 36) for _ in range(2)]}
grads["w"].append(grads["w"][0])
args = types.SimpleNamespace(optim_bits=8, min_8bit_size=4096, max_unorm=0.0, skip_zeros=False)
run("galore_adamw_8bit.tall.std", galore(galore_torch.GaLoreAdamW8bit, "std", 32, args=args, eps=1e-6), params, grads, (12,))

# The same numbers are stored once.
seen, stored, alias = {}, {}, {}
for name, tensor in tensors.items():
    key = (tuple(tensor.shape), str(tensor.dtype), tensor.contiguous().numpy().tobytes())
    if key in seen:
        alias[name] = seen[key]
    else:
        seen[key] = name
        stored[name] = tensor.contiguous()
OUT.mkdir(parents=True, exist_ok=True)
save_file(stored, OUT / "optimizers.safetensors")
meta = {
    "generator": "tools/golden/optimizers.py",
    "versions": {m.__name__: m.__version__ for m in (torch, transformers, bitsandbytes, np)} | {"galore_torch": "1.0"},
    "lr": LR,
    "weight_decay": WEIGHT_DECAY,
    "scale": SCALE,
    "galore": {"rank": RANK, "rank_8bit": 32, "update_proj_gap": GAP, "scale": FACTOR},
    "same_as": alias,
}
(OUT / "optimizers.json").write_text(json.dumps(meta, indent=1) + "\n")
