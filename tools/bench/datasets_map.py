"""Rows a second of `datasets.map` with the same tokenizer, for comparison with `forgelm-bench data`.

Run: python tools/bench/datasets_map.py TOKENIZER_DIR DATA.jsonl [--processes 2] [--batched]
Rows are {"text": …} or {"messages": …}; conversations go through the tokenizer's chat template as TRL does it.
"""

import argparse
import json
import tempfile
import time

from datasets import Dataset, disable_caching
from transformers import AutoTokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer")
    parser.add_argument("data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batched", action="store_true")
    arguments = parser.parse_args()
    disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        data = Dataset.from_json(arguments.data, cache_dir=cache)
        loaded = time.perf_counter()

        def one(row):
            if "messages" in row:
                return tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)
            return tokenizer(row["text"] + tokenizer.eos_token)

        def many(rows):
            if "messages" in rows:
                return tokenizer.apply_chat_template(rows["messages"], tokenize=True, return_dict=True)
            return tokenizer([text + tokenizer.eos_token for text in rows["text"]])

        function = many if arguments.batched else one
        mapped = data.map(
            function, batched=arguments.batched, num_proc=arguments.processes, remove_columns=data.column_names
        )
        end = time.perf_counter()
    print(
        json.dumps(
            {
                "rows": len(mapped),
                "batched": arguments.batched,
                "load_s": round(loaded - start, 2),
                "map_s": round(end - loaded, 2),
                "rows_per_s": round(len(mapped) / (end - start), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
