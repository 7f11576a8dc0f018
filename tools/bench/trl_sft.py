"""TRL's SFTTrainer with the settings of a ForgeLM config, for comparison of whole runs.

Run: python tools/bench/trl_sft.py MODEL_DIR DATA.jsonl OUTPUT_DIR [--dtype bfloat16] [--steps 20]
LoRA r=16 on all linear layers, batches of 8 rows, the last answer of a conversation trained alone:
configs/quickstart.yaml without dropout, validation and checkpoints. Prints the seconds from the
start of the process to the saved adapter.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with open(arguments.data, encoding="utf-8") as file:
        rows = [json.loads(line)["messages"] for line in file]
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    loaded = time.perf_counter()
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
            lr_scheduler_type="cosine",
            max_length=512,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=5,
            seed=42,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    ready = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    trainer.save_model()
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"imports and model {loaded - START:.1f} s, data {ready - loaded:.1f} s, "
        f"{arguments.steps} steps {trained - ready:.1f} s, in all {end - START:.1f} s; peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
