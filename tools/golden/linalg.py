"""Singular values of small matrices, by numpy (LAPACK, f64): core/tensor/tests/data/svd.txt.

Text, so that the crate under test needs no reader of tensor files.
Run: python tools/golden/linalg.py   (numpy)
"""

import pathlib

import numpy as np

OUT = pathlib.Path(__file__).parents[2] / "core/tensor/tests/data"
rng = np.random.default_rng(20240507)


def low_rank(m, n, r):
    return rng.standard_normal((m, r)) @ rng.standard_normal((r, n))


def decaying(m, n, rate):
    """Singular values rate^i: the small ones are below what f32 can hold of the matrix."""
    k = min(m, n)
    u = np.linalg.qr(rng.standard_normal((m, k)))[0]
    v = np.linalg.qr(rng.standard_normal((n, k)))[0]
    return (u * rate ** np.arange(k)) @ v.T


cases = {
    "tall": rng.standard_normal((40, 24)),
    "wide": rng.standard_normal((17, 61)),
    "square": rng.standard_normal((33, 33)),
    "row": rng.standard_normal((1, 9)),
    "column": rng.standard_normal((9, 1)),
    "rank5": low_rank(48, 30, 5),
    "zero": np.zeros((6, 4)),
    "decaying": decaying(32, 50, 0.4),
    "repeated": np.kron(np.eye(4), np.ones((3, 2))),
    "large": rng.standard_normal((12, 20)) * 1e30,
    "tiny": rng.standard_normal((12, 20)) * 1e-30,
}
OUT.mkdir(parents=True, exist_ok=True)
with open(OUT / "svd.txt", "w") as f:
    f.write(f"# tools/golden/linalg.py, numpy {np.__version__}: name, rows, columns;")
    f.write(" bits of the f32 values; singular values\n")
    for name, a in cases.items():
        a = np.ascontiguousarray(a, dtype=np.float32)
        s = np.linalg.svd(a.astype(np.float64), compute_uv=False)
        f.write(f"{name} {a.shape[0]} {a.shape[1]}\n")
        f.write(" ".join(f"{b:08x}" for b in a.view(np.uint32).ravel()) + "\n")
        f.write(" ".join(repr(float(v)) for v in s) + "\n")
