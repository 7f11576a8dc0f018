"""Tokens a second of PyTorch and PEFT, for comparison with `forgelm-bench train`.

Run: python tools/bench/peft_train.py MODEL_DIR [--case qv|qv-long|all] [--dtype float32|bfloat16] [--steps 3]
The same shapes: random tokens, every one trained; forward, backward, clipping and AdamW in an eager loop.
`--load-in-4bit` quantizes the linear layers with bitsandbytes (nf4, double quantization).
"""

import argparse
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

CASES = {
    "qv": (8, ["q_proj", "v_proj"], 4, 256),
    "qv-long": (8, ["q_proj", "v_proj"], 1, 1024),
    "all": (16, "all-linear", 4, 256),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--case", choices=CASES, default="qv")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--load-in-4bit", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    quantization = None
    if arguments.load_in_4bit:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, quantization_config=quantization)
    r, modules, n_rows, length = CASES[arguments.case]
    model = get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=modules))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    times = []
    for _ in range(arguments.steps + 1):
        ids = torch.randint(0, model.config.vocab_size, (n_rows, length))
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    # The first step touches every buffer for the first time.
    times = times[1:]
    n_tokens = n_rows * length
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{arguments.case} {arguments.dtype}: mean {n_tokens * len(times) / sum(times):.0f} tokens/s, "
        f"best {n_tokens / min(times):.0f}; peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
