"""Golden values of tests/golden/benchmark.rs: what the lm-evaluation-harness asks and scores.

    python tools/golden/benchmark.py tests/data/golden

with lm_eval 0.4.13, torch 2.15.0 (CPU), transformers 5.23.0. Everything lies in benchmark/: a task file
and rows for each case, and expected.json with every request, answer and metric of the harness on
models/tiny-llama. Built-in tasks are asked over rows of this file's own, shaped like the published ones:
the harness includes its definition, ForgeLM its own.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import lm_eval
import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

HARNESS = Path(lm_eval.__file__).parent / "tasks"

ANIMALS = ["cat", "dog", "horse", "owl", "bee", "whale", "ant", "fox", "crow", "seal", "toad", "hen"]
PLACES = ["barn", "river", "forest", "desert", "garden", "sea", "cave", "meadow"]
COLORS = ["red", "blue", "green", "grey", "black", "white"]


def pick(items, i, step):
    return items[(i * step + i // 3) % len(items)]


def questions(n, start):
    rows = []
    for i in range(start, start + n):
        choices = [f"in the {pick(PLACES, i + k, 3)}" for k in range(3 + i % 2)]
        rows.append(
            {
                "question": f"Where does the {pick(COLORS, i, 5)} {pick(ANIMALS, i, 7)} live?",
                "choices": choices,
                "answer": i % len(choices),
                "hint": f"Hint {i}: it’s not far.  " if i % 4 == 0 else "",
            }
        )
    return rows


def passages(n):
    rows = []
    for i in range(n):
        a, b, c = pick(ANIMALS, i, 5), pick(PLACES, i, 3), pick(COLORS, i, 2)
        rows.append({"text": f"The {a} went to the {b}, since the {b} is {c} and every {a} likes {c}"})
    # Longer than the model takes.
    rows[2]["text"] = " ".join(f"the {pick(ANIMALS, i, 5)} saw a {pick(COLORS, i, 7)} stone;" for i in range(120))
    return rows


def sums(n):
    return [
        {"question": f"What is {i} and {i + 2}?", "answer": f"They are\n#### {2 * i + 2}", "all": [str(2 * i + 2), "many"]}
        for i in range(n)
    ]


def letters(texts):
    return {"label": ["A", "B", "C", "D"][: len(texts)], "text": texts}


def builtin_rows():
    """Rows of the published shapes, by task: (split of the asked rows, asked, split of examples, examples)."""
    arc = [
        {
            "id": f"q{i}",
            "question": f"Which of these does a {pick(ANIMALS, i, 5)} eat?",
            "choices": letters([f"a {pick(COLORS, i + k, 5)} {pick(ANIMALS, i + k, 3)}" for k in range(3 + i % 2)]),
            "answerKey": "ABC"[i % 3],
        }
        for i in range(9)
    ]
    openbook = [{**row, "question_stem": row["question"], "answerKey": " " + row["answerKey"]} for row in arc]
    hellaswag = [
        {
            "activity_label": "Feeding animals",
            "ctx_a": f"A {pick(ANIMALS, i, 5)} [header] stands by the {pick(PLACES, i, 3)}.",
            "ctx_b": "the FARMER" if i % 2 else "",
            "endings": [f"looks [step] at  the {pick(COLORS, i + k, 5)} wall." for k in range(4)],
            "label": str(i % 4),
        }
        for i in range(8)
    ]
    piqa = [
        {
            "goal": f"How to feed a {pick(ANIMALS, i, 7)}?",
            "sol1": f"Go to the {pick(PLACES, i, 3)}.",
            "sol2": f"Paint it {pick(COLORS, i, 5)}.",
            "label": i % 2,
        }
        for i in range(8)
    ]
    winogrande = [
        {
            "sentence": f"The {pick(ANIMALS, i, 5)} chased the {pick(ANIMALS, i, 7)} because the _ was {pick(COLORS, i, 5)}.",
            "option1": pick(ANIMALS, i, 5),
            "option2": pick(ANIMALS, i, 7),
            "answer": "12"[i % 2],
        }
        for i in range(8)
    ]
    boolq = [
        {
            "passage": f"The {pick(ANIMALS, i, 5)} lives in the {pick(PLACES, i, 3)}.",
            "question": f"does the {pick(ANIMALS, i, 5)} live in the {pick(PLACES, i, 5)}",
            "label": i % 2,
        }
        for i in range(8)
    ]
    mmlu = [
        {
            "question": f" Which place is {pick(COLORS, i, 5)}? ",
            "choices": [pick(PLACES, i + k, 3) for k in range(4)],
            "answer": i % 4,
        }
        for i in range(10)
    ]
    truthful = [
        {
            "question": f"What do {pick(ANIMALS, i, 5)}s dream of?",
            "mc1_targets": {"choices": ["Nobody knows.", "Of gold.", "Of the sea."], "labels": [1, 0, 0]},
            "mc2_targets": {
                "choices": ["Nobody knows.", "It is not known.", "Of gold.", "Of the sea."],
                "labels": [1, 1, 0, 0],
            },
        }
        for i in range(6)
    ]
    gsm8k = [
        {"question": f"Ann has {i} eggs and buys {i + 1}. How many?", "answer": f"{i}+{i + 1}={2 * i + 1}\n#### {2 * i + 1}"}
        for i in range(9)
    ]
    return {
        "arc_easy": ("arc/arc_easy.yaml", "test", arc[:6], "train", arc[6:]),
        "openbookqa": ("openbookqa/openbookqa.yaml", "test", openbook[:6], "train", openbook[6:]),
        "hellaswag": ("hellaswag/hellaswag.yaml", "validation", hellaswag[:5], "train", hellaswag[5:]),
        "piqa": ("piqa/piqa.yaml", "validation", piqa[:5], "train", piqa[5:]),
        "winogrande": ("winogrande/default.yaml", "validation", winogrande[:5], "train", winogrande[5:]),
        "boolq": ("super_glue/boolq/default.yaml", "validation", boolq[:5], "train", boolq[5:]),
        "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", "test", mmlu[:6], "dev", mmlu[6:]),
        "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation", truthful, None, []),
        "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "validation", truthful, None, []),
        "gsm8k": ("gsm8k/gsm8k.yaml", "test", gsm8k[:4], "train", gsm8k[4:]),
        "lambada_openai": ("lambada/lambada_openai.yaml", "test", passages(6)[3:], None, []),
    }


def local(name, files):
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def own_tasks():
    """Tasks that only exist here: name, definition, rows by split, examples in each prompt, limit."""
    train, test = questions(9, 0), questions(14, 40)
    choice = {
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{hint}}Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}, {"metric": "exact_match"}],
    }
    both = {"train": train, "test": test}
    return [
        ("choice", choice, both, None, None),
        ("choice_3shot", {**choice, "description": "Read {{question|length}} signs.\n"}, both, 3, None),
        ("choice_first", {**choice, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}, both, 2, 5),
        # No test split: examples come from the asked rows, without the asked one.
        (
            "choice_self",
            {**{k: v for k, v in choice.items() if k not in ("training_split", "test_split")}, "validation_split": "validation", "num_fewshot": 2},
            {"validation": test},
            None,
            None,
        ),
        (
            "choice_prefix",
            {
                **choice,
                "gen_prefix": "It lives",
                "target_delimiter": " ",
                "fewshot_delimiter": "\n---\n",
                "fewshot_config": {
                    "split": "train",
                    "samples": None,
                    "doc_to_text": "Q: {{question}}",
                },
            },
            both,
            1,
            4,
        ),
        (
            "several_right",
            {**choice, "doc_to_target": "{{[answer, 0]}}", "metric_list": [{"metric": "acc"}, {"metric": "exact_match"}]},
            {"train": train, "test": test[:5]},
            None,
            None,
        ),
        (
            "passage",
            {
                "output_type": "loglikelihood",
                "test_split": "test",
                "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
                "doc_to_target": "{{' '+text.split(' ')[-1]}}",
            },
            {"test": passages(7)},
            None,
            None,
        ),
        (
            "from_nothing",
            {"output_type": "loglikelihood", "test_split": "test", "doc_to_text": "", "doc_to_target": "text"},
            {"test": passages(7)[3:]},
            None,
            None,
        ),
        (
            "whole",
            {"output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "", "doc_to_target": "{{text}}"},
            {"test": passages(5)},
            None,
            None,
        ),
        (
            "answer",
            {
                "output_type": "generate_until",
                "training_split": "train",
                "test_split": "test",
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["\n\n", "e"], "max_gen_toks": 12, "do_sample": False},
                "filter_list": [
                    {"name": "number", "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}]},
                    {"name": "plain", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
                ],
                "metric_list": [{"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": ["(?s).*#### "]}],
            },
            {"train": sums(9)[5:], "test": sums(5)},
            2,
            None,
        ),
        (
            "answers",
            {
                "output_type": "generate_until",
                "test_split": "test",
                "doc_to_text": "question",
                "doc_to_target": "all",
                "generation_kwargs": {"until": [" "], "max_gen_toks": 6, "do_sample": False},
            },
            {"test": sums(4)},
            None,
            None,
        ),
    ]


def write_rows(folder, name, splits):
    files = {}
    for split, rows in splits.items():
        file = f"{name}.{split}.jsonl"
        (folder / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files[split] = file
    return files


def run(model, path, n_shot, limit):
    results = evaluator.simple_evaluate(
        model=model, tasks=[str(path)], num_fewshot=n_shot, limit=limit, batch_size=1,
        task_manager=TaskManager(include_defaults=False, include_path=str(path.parent)), log_samples=True,
    )
    name = next(iter(results["samples"]))
    metrics = {k: v for k, v in results["results"][name].items() if "," in k}
    documents, seen = [], set()
    for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"]):
        if sample["doc_id"] in seen:
            continue
        seen.add(sample["doc_id"])
        arguments = sample["arguments"]
        if isinstance(arguments, dict):
            arguments = [list(a.values()) for a in arguments.values()]
        documents.append({"arguments": [[a for a in one if isinstance(a, str)] for one in arguments], "answers": [r[0] for r in sample["resps"]]})
    return {"n_shot": n_shot, "limit": limit, "metrics": metrics, "documents": documents}


def main(golden):
    folder = golden / "benchmark"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    os.chdir(folder)
    model = HFLM(pretrained=str((golden / "models/tiny-llama").resolve()), batch_size=1, dtype="float32", device="cpu")
    expected = {}
    for name, definition, splits, n_shot, limit in own_tasks():
        files = write_rows(folder, name, splits)
        task = {"task": name, **local(name, files), **definition}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
        expected[name] = run(model, path, n_shot, limit)
    with tempfile.TemporaryDirectory() as there:
        for builtin, (file, split, asked, of_examples, examples) in builtin_rows().items():
            splits = {split: asked, **({of_examples: examples} if of_examples else {})}
            name = f"own_{builtin}"
            files = write_rows(folder, name, splits)
            task = {"task": name, **local(name, files)}
            n_shot = 2 if of_examples else None
            if builtin == "gsm8k":
                task["generation_kwargs"] = {"until": ["Question:", "</s>", "<|im_end|>"], "max_gen_toks": 10, "do_sample": False}
            dump = lambda include: yaml.safe_dump({"include": include, **task}, sort_keys=False)
            (folder / f"{name}.yaml").write_text(dump(builtin))
            harness = Path(there) / f"{name}.yaml"
            harness.write_text(dump(str(HARNESS / file)))
            expected[name] = run(model, harness, n_shot, None)
    group = {
        "group": "all", "task": ["choice", "own_piqa", "own_boolq"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}, {"metric": "acc_norm", "weight_by_size": False}],
    }
    (folder / "all.yaml").write_text(yaml.safe_dump(group, sort_keys=False))
    with tempfile.TemporaryDirectory() as there:
        for name in group["task"]:
            text = (folder / f"{name}.yaml").read_text()
            for builtin, (file, *_) in builtin_rows().items():
                text = text.replace(f"include: {builtin}\n", f"include: {HARNESS / file}\n")
            (Path(there) / f"{name}.yaml").write_text(text)
        (Path(there) / "all.yaml").write_text((folder / "all.yaml").read_text())
        results = evaluator.simple_evaluate(
            model=model, tasks=["all"], batch_size=1, task_manager=TaskManager(include_defaults=False, include_path=there),
        )
        keys = {k: v for k, v in results["groups"]["all"].items() if "," in k}
        of_task = lambda name: [r[0] for sample in sorted(results["samples"][name], key=lambda s: s["doc_id"]) for r in sample["resps"]]
        expected["all"] = {"metrics": keys, "members": {name: of_task(name) for name in group["task"]}}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
