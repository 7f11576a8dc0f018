"""What a data audit counts, computed plainly: fingerprints, near-duplicates, leaks, lengths, quality.

Run with the package xxhash (the reference implementation of XXH3): python tools/golden/audit.py
Writes tests/data/golden/audit/corpus.json. Everything is compared with everything, and words, lines and
paragraphs are found by regular expressions, so nothing is shared with the program but the rules.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

import xxhash

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden" / "audit"
WORDS = (
    "river stone lamp bird house water light winter garden paper morning window table letter summer music "
    "I a of to it x1 snake_case ÇOK güzel İyi Straße ΣΟΦΟΣ naïve 数据 模型 42 1999"
).split()


def fingerprint(text):
    sums = [0] * 64
    for word, weight in Counter(word.lower() for word in re.findall(r"\w+", text)).items():
        hash = xxhash.xxh3_64_intdigest(word.encode())
        for bit in range(64):
            sums[bit] += weight if hash >> bit & 1 else -weight
    return sum(1 << bit for bit in range(64) if sums[bit] > 0)


PRIME = 2**61 - 1


def signature(text):
    words = {xxhash.xxh3_64_intdigest(word.lower().encode()) for word in re.findall(r"\w+", text)}
    number = lambda i: xxhash.xxh3_64_intdigest(i.to_bytes(8, "little"), seed=1)
    return [
        min((((number(2 * i) % (PRIME - 1) + 1) * w + number(2 * i + 1) % PRIME) % PRIME & 0xFFFFFFFF for w in words))
        for i in range(128 if words else 0)
    ]


def similar(a, b, jaccard):
    return bool(a and b) and sum(x == y for x, y in zip(a, b)) / 128 >= jaccard


def by_minhash(train, test, jaccard):
    a, b = [list(map(signature, texts)) for texts in (train, test)]
    return {
        "minhash_distinct": [len({tuple(s) for s in signatures if s}) for signatures in (a, b)],
        "near_duplicate_pairs": [
            sum(similar(x, y, jaccard) for i, x in enumerate(s) for y in s[:i]) for s in (a, b)
        ],
        "leaked": [sum(any(similar(x, y, jaccard) for y in t) for x in s) for s, t in [(a, b), (b, a)]],
    }


def near(a, b, distance):
    return a != 0 and b != 0 and bin(a ^ b).count("1") <= distance


def quality(text):
    text = re.sub(r"(?ms)^ {0,3}(`{3,})[^`\n]*\n(.*?\n)?? {0,3}\1`*[ \t]*(?:\n|\Z)", "", text)
    if not text.strip():
        return []
    words = re.findall(r"[\w']+", text)
    if not words:
        return ["low_alpha_ratio"]
    flags = []
    visible = [c for c in text if not c.isspace()]
    if sum(c.isalpha() for c in visible) / len(visible) < 0.7:
        flags.append("low_alpha_ratio")
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    if sum(bool(re.search(r"[.!?…\"')\]]$", line)) for line in lines) / len(lines) < 0.5:
        flags.append("low_punct_endings")
    mean = sum(map(len, words)) / len(words)
    if mean < 3 or mean > 12:
        flags.append("abnormal_mean_word_length")
    paragraphs = [p for p in re.split(r"\n\s*\n", text) if p.strip()]
    if sum(len(re.findall(r"[\w']+", p)) < 5 for p in paragraphs) / len(paragraphs) > 0.5:
        flags.append("short_paragraphs")
    top = [n for _, n in Counter(lines).most_common() if n >= 2][:3]
    if len(lines) >= 3 and sum(top) / len(lines) > 0.3:
        flags.append("repeated_lines")
    return flags


def sentence(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n)) + rng.choice(["", ".", "!", " 12:34.", "?"])


def text(rng):
    lines = [sentence(rng, rng.randint(1, 12)) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.2:
        lines += [lines[0]] * 3
    if rng.random() < 0.2:
        lines += ["```py", "x = [1, 2, 3]; y = {4: 5}", "```"]
    return rng.choice(["\n", "\n\n"]).join(lines)


def split(rng, n, others):
    texts = []
    for _ in range(n):
        known = texts + others
        if known and rng.random() < 0.5:
            words = rng.choice(known).split(" ")
            for _ in range(rng.randint(0, 2)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            texts.append(" ".join(words))
        else:
            texts.append(text(rng))
    return texts + ["", "..."]


def summary(texts, distance):
    prints = [fingerprint(t) for t in texts]
    lengths = sorted(len(t) for t in texts if t.strip())
    flags = [quality(t) for t in texts if t.strip()]
    return {
        "fingerprints": [f"{print:016x}" for print in prints],
        "sample_count": len(texts),
        "null_or_empty_count": sum(not t.strip() for t in texts),
        "simhash_distinct": len(set(prints) - {0}),
        "near_duplicate_pairs": sum(
            near(a, b, distance) for i, a in enumerate(prints) for b in prints[:i]
        ),
        "text_length": {
            "min": lengths[0],
            "max": lengths[-1],
            "mean": round(sum(lengths) / len(lengths), 1),
            "p50": lengths[len(lengths) // 2],
            "p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        },
        "quality_samples_flagged": sum(map(bool, flags)),
        "quality_flags_counts": dict(sorted(Counter(f for fs in flags for f in fs).items())),
    }


def main():
    rng = random.Random(20)
    train = split(rng, 120, [])
    test = split(rng, 40, train)
    distances = {}
    for distance in [0, 3, 8, 20]:
        a = [f for f in map(fingerprint, train) if f]
        b = [f for f in map(fingerprint, test) if f]
        leaked = [sum(any(near(x, y, distance) for y in t) for x in s) for s, t in [(a, b), (b, a)]]
        distances[distance] = {
            "splits": {"train": summary(train, distance), "test": summary(test, distance)},
            "overlap": {
                "leaked_rows_in_train": leaked[0],
                "leak_rate_train": round(leaked[0] / len(a), 4),
                "leaked_rows_in_test": leaked[1],
                "leak_rate_test": round(leaked[1] / len(b), 4),
            },
        }
    OUT.mkdir(parents=True, exist_ok=True)
    corpus = {
        "xxhash": xxhash.VERSION,
        "texts": {"train": train, "test": test},
        "hashes": {word: f"{xxhash.xxh3_64_intdigest(word.encode()):016x}" for word in WORDS + [""]},
        "distances": distances,
        "minhash": {str(j): by_minhash(train, test, j) for j in [0, 0.3, 0.6, 0.85, 1]},
    }
    with open(OUT / "corpus.json", "w") as file:
        json.dump(corpus, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print({d: (v["splits"]["train"]["near_duplicate_pairs"], v["overlap"]) for d, v in distances.items()})
    print(corpus["minhash"])
    print(distances[3]["splits"]["train"]["quality_flags_counts"])


if __name__ == "__main__":
    main()
