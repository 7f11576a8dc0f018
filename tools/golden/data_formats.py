"""Small Parquet files as the Python stack writes them, for tests of the reader.

Run with pyarrow: python tools/golden/data_formats.py
Writes tests/data/formats/*.parquet (made with pyarrow as printed).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "formats"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    chat = pa.table(
        {
            "messages": pa.array(
                [
                    [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer é {i}"}]
                    for i in range(5)
                ],
                pa.list_(message),
            ),
            "id": pa.array(range(5), pa.int64()),
            "score": pa.array([0.5, None, 1.0, 2.0, 3.0], pa.float64()),
        }
    )
    pq.write_table(chat, OUT / "chat-snappy.parquet", compression="snappy", row_group_size=2)
    labelled = pa.table({"prompt": ["p0", "p1"], "completion": [" a", " b"], "label": [True, False]})
    pq.write_table(labelled, OUT / "labelled-gzip.parquet", compression="gzip")
    pq.write_table(labelled, OUT / "labelled-zstd.parquet", compression="zstd")
    print("pyarrow", pa.__version__, [p.name for p in sorted(OUT.iterdir())])


if __name__ == "__main__":
    main()
