"""What PEFT computes with adapter folders that ForgeLM saved.

Usage: python tools/golden/peft_reads_ours.py MODEL_DIR ADAPTER_DIR...

Each ADAPTER_DIR has `adapter_config.json` and `adapter_model.safetensors`; `logits.safetensors` and
`golden.json` (the tokens and the version) are written beside them. PEFT must accept every tensor: a
missing or unexpected key is an error.
"""

import json
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import save_file

TOKENS = [1, 5, 9, 13, 2, 40, 17, 8, 21, 3, 30, 11]


def main():
    model_dir, *folders = map(pathlib.Path, sys.argv[1:])
    torch.set_num_threads(1)
    for folder in folders:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        with warnings.catch_warnings():
            # PEFT warns when a key of the file is missing or not used.
            warnings.filterwarnings("error", message=".*adapter keys.*")
            model = peft.PeftModel.from_pretrained(base, folder).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([TOKENS])).logits[0]
        save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
        about = {"tokens": TOKENS, "peft": peft.__version__, "torch": torch.__version__}
        (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
