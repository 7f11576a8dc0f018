"""The steps of `forgelm-bench gpu` in PyTorch, transformers and PEFT, for comparison on one device.

`forgelm-bench gpu` runs it and says what to measure, as JSON: models with the same `config.json`,
random weights in bfloat16, the same batches, LoRA of the same rank on all linear layers, AdamW. It
prints one JSON object a line. Versions that were meant to be compared with stand in PINNED; others
run too, and the page names those that ran.

It belongs to no product and no test of CI: `tools/bench/gpu --baseline` installs what it needs in a
virtual environment of its own.
"""

import json
import sys
import time

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2"}


def say(**fields):
    print(json.dumps(fields), flush=True)


def model_of(torch, config, rank, device, is_checkpointed):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(model, lora)
    if is_checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.to(device).train()


def steps(torch, model, vocabulary, n_rows, length, n_steps, device):
    """Seconds of each step but the first, which takes memory and loads kernels; the last loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=device == "cuda")
    times = []
    for _ in range(n_steps + 1):
        ids = torch.randint(0, vocabulary, (n_rows, length), device=device)
        wait(torch, device)
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(torch, device)
        times.append(time.perf_counter() - start)
    return times[1:], float(loss)


def wait(torch, device):
    if device == "cuda":
        torch.cuda.synchronize()


def main():
    asked = json.loads(sys.argv[1])
    until = time.perf_counter() + asked["seconds"]
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        return say(skipped=f"{sys.executable} cannot import `{error.name}`")
    device = "cpu" if asked["is_tiny"] else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        return say(skipped="PyTorch finds no device")
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    other = [name for name in PINNED if found[name].split("+")[0] != PINNED[name]]
    say(versions=versions + (f"; pinned are others of {', '.join(other)}" if other else ""))
    torch.manual_seed(0)
    for shape in asked["models"]:
        for n_rows, length in asked["batches"]:
            for variant, is_checkpointed in [("all activations kept", False), ("checkpointed", True)]:
                name = f"{shape['name']}, {n_rows} x {length}, {variant}"
                if time.perf_counter() > until:
                    say(skipped=f"{name}: no time is left")
                    continue
                try:
                    measure(torch, shape, asked["rank"], n_rows, length, variant, is_checkpointed, device)
                except torch.cuda.OutOfMemoryError:
                    say(skipped=f"{name}: it does not fit into the device's memory")
                if device == "cuda":
                    torch.cuda.empty_cache()


def measure(torch, shape, rank, n_rows, length, variant, is_checkpointed, device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    config = dict(shape["config"])
    model = model_of(torch, config, rank, device, is_checkpointed)
    times, loss = steps(torch, model, config["vocab_size"], n_rows, length, 4, device)
    best = min(times)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    say(
        model=shape["name"],
        variant=variant,
        batch=f"{n_rows} x {length}",
        ms=best * 1e3,
        tokens_per_second=n_rows * length / best,
        peak_gb=peak,
        loss=loss,
    )


if __name__ == "__main__":
    main()
