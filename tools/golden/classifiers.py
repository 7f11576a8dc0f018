"""Golden values for classifiers: tiny random models, and the logits that transformers gives sequences.

    python tools/golden/classifiers.py tests/data/golden/classifiers

Needs torch, transformers and safetensors. A folder for each case:

    config.json, model.safetensors   a Hugging Face folder; weights are bf16 numbers, run in f32
    golden.json                      sequences, and the logits of each alone

The last sequences end with the padding token: the head then reads what stands before it.
"""

import json
import os
import sys
import zlib

import torch
import transformers as t
from safetensors.torch import load_file, save_file

from families import BASE, random_weights

SIZES = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, vocab_size=67,
             num_key_value_heads=2, max_position_embeddings=64)


def cases():
    yield "llama", t.LlamaForSequenceClassification, t.LlamaConfig(
        **BASE, **SIZES, num_hidden_layers=2, num_labels=1)
    yield "qwen2", t.Qwen2ForSequenceClassification, t.Qwen2Config(
        **{**BASE, "pad_token_id": None}, **SIZES, num_hidden_layers=2, num_labels=3,
        tie_word_embeddings=True)
    yield "gemma2", t.Gemma2ForSequenceClassification, t.Gemma2Config(
        **BASE, **{**SIZES, "head_dim": 12}, num_hidden_layers=2, sliding_window=7,
        query_pre_attn_scalar=12, num_labels=2)


def make(name, cls, config, root):
    seed = zlib.crc32(name.encode())
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "eager"
    model = cls(config).float().eval()
    random_weights(model, generator)
    folder = os.path.join(root, name)
    model.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    stored = load_file(path)
    save_file({k: v.bfloat16() for k, v in stored.items()}, path, metadata={"format": "pt"})
    sequences = [torch.randint(3, 67, (n,), generator=generator).tolist() for n in (1, 5, 18, 33)]
    sequences += [[9, 8, 7, 2], [11, 2, 12, 2, 2]]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in sequences]
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump(dict(seed=seed, sequences=sequences, logits=logits,
                       versions=dict(torch=torch.__version__, transformers=t.__version__)), f)
        f.write("\n")
    print(name, logits)


if __name__ == "__main__":
    for case in cases():
        make(*case, sys.argv[1])
