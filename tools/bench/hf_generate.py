"""Greedy tokens a second of transformers, for comparison with `forgelm-bench generate`.

Run: python tools/bench/hf_generate.py MODEL_DIR [--dtype float32|bfloat16] [--threads 2]
Prompts of 32 tokens, 32 new ones, batches of 1 and 8; prompts are counted in the time.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    for batch in (1, 8):
        ids = torch.randint(0, model.config.vocab_size, (batch, 32))
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=32,
                    min_new_tokens=32,
                    do_sample=False,
                    pad_token_id=0,
                )
            best = min(best, time.perf_counter() - start)
        print(f"batch {batch} {arguments.dtype}: {batch * (out.shape[1] - 32) / best:.1f} tokens/s")


if __name__ == "__main__":
    main()
