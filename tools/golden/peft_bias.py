"""Adapters with trained biases, and what PEFT makes of adapter folders.

Usage: python tools/golden/peft_bias.py MODEL_DIR OUT_DIR

For each of bias `all` and `lora_only`: an adapter (r 4, alpha 8, on q_proj and down_proj) whose A, B
and biases are set to fixed values, as PEFT saves it, and the logits of the fixed batch as PEFT computes
them. MODEL_DIR is a model whose query, key and value projections have biases.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file

TOKENS = [[1, 5, 9, 13, 2, 40, 17, 8, 21, 3, 30, 11]]


def main():
    model_dir, out = map(pathlib.Path, sys.argv[1:3])
    torch.set_num_threads(1)
    for bias in ["all", "lora_only"]:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], bias=bias,
            task_type="CAUSAL_LM", base_model_name_or_path=model_dir.name,
        )
        model = peft.get_peft_model(base, config).eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            logits = model(input_ids=torch.tensor(TOKENS)).logits[0]
        folder = out / bias
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
        trained = sorted(n for n, p in model.named_parameters() if p.requires_grad)
        about = {"tokens": TOKENS[0], "trained": trained, "peft": peft.__version__}
        (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
