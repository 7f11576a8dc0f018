"""Ten AdamW steps over every parameter of the tiny models, as PyTorch computes them.

Usage: python tools/golden/full_finetune.py GOLDEN_DIR OUT_DIR

GOLDEN_DIR has `models/<name>` and `lora/inputs/train_batches.safetensors`; OUT_DIR/<name>/golden.json
is written. The recipe is that of `lora/`: AdamW betas (0.9, 0.999), eps 1e-8, weight decay 0.01 on
every parameter, learning rate 1e-3 with three steps of linear warm-up and linear decay to 0 at step
10 (the first step's rate is 0), gradients clipped to a global norm of 1. No random number is drawn.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file

MODELS = ["tiny-llama", "tiny-qwen3", "tiny-gemma2"]
STEPS, WARMUP, LR = 10, 3, 1e-3


def summary(tensor):
    flat = tensor.detach().flatten().double()
    return {
        "shape": list(tensor.shape),
        "l2": flat.norm().item(),
        "head": flat[:8].tolist(),
        "tail": flat[-8:].tolist(),
    }


def learning_rate(step):
    if step < WARMUP:
        return LR * step / WARMUP
    return LR * (STEPS - step) / (STEPS - WARMUP)


def loss_of(model, batches, step):
    part = lambda name: batches[f"step{step}.{name}"]
    out = model(
        input_ids=part("input_ids"), attention_mask=part("attention_mask"), labels=part("labels")
    )
    return out.loss


def run(golden, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        golden / "models" / name, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    batches = load_file(golden / "lora" / "inputs" / "train_batches.safetensors")
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(named.values(), lr=0.0, weight_decay=0.01)
    result = {"model": name, "losses": [], "lr": [], "grad_norm": []}
    for step in range(STEPS):
        loss = loss_of(model, batches, step)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            result["first_gradients"] = {n: summary(p.grad) for n, p in named.items()}
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        result["losses"].append(loss.item())
        result["lr"].append(rate)
        result["grad_norm"].append(norm.item())
    with torch.no_grad():
        result["loss_after"] = loss_of(model, batches, 0).item()
    result["final"] = {n: summary(p) for n, p in named.items()}
    result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    return result


def main():
    golden, out = map(pathlib.Path, sys.argv[1:3])
    torch.set_num_threads(1)
    for name in MODELS:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "golden.json").write_text(json.dumps(run(golden, name), indent=1) + "\n")


if __name__ == "__main__":
    main()
