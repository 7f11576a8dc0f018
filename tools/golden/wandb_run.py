"""The file that `core/outbound/src/wandb/tests.rs` compares with, from the client's own parts.

    python -m venv v && v/bin/pip install wandb==0.19.11
    v/bin/python tools/golden/wandb_run.py

Messages are made by the classes of `wandb_internal.proto`, and the log by `datastore.py`: the last clients
had it in Python. Prints the hash CUT of the test. Each file is read back by the same log.
"""

import hashlib
import json
import pathlib
import tempfile

from wandb.proto import wandb_internal_pb2 as pb
from wandb.sdk.internal.datastore import DataStore

OUT = pathlib.Path(__file__).parents[2] / "core/outbound/src/tests/golden/run.wandb.golden"
START = 1_700_000_000_250_000


def items(of, values, at, step):
    own = [("_step", step), ("_timestamp", at / 1e6), ("_runtime", (at - START) / 1e6)]
    for name, value in values + own:
        item = of.add()
        item.nested_key.append(name)
        item.value_json = json.dumps(value)


def record(**parts):
    return pb.Record(**parts)


def begin(name):
    version = pb.VersionInfo(producer="forgelm 0.1.0", min_consumer="0.70.0")
    run = pb.RunRecord(run_id="fg-0123456789ab", project="größe", run_group="fg-0123456789ab", display_name=name)
    for key, value in [("_wandb", "{}"), ("lora", '{"r":8}')]:
        run.config.update.add(key=key, value_json=value)
    run.start_time.FromMicroseconds(START)
    return [record(header=pb.HeaderRecord(version_info=version)), record(run=run)]


def row(at, step, values):
    summary, history = pb.SummaryRecord(), pb.HistoryRecord()
    items(summary.update, values, at, step)
    items(history.item, values, at, step)
    history.step.num = step
    return [record(summary=summary), record(history=history)]


def file(records):
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/run.wandb"
        log = DataStore()
        log.open_for_write(path)
        for number, one in enumerate(records, 1):
            one.num = number
            log.write(one)
        log.close()
        log = DataStore()
        log.open_for_scan(path)
        found = []
        while (data := log.scan_data()) is not None:
            found.append(pb.Record.FromString(data))
        assert [of.SerializeToString() for of in found] == [of.SerializeToString() for of in records]
        return pathlib.Path(path).read_bytes()


def main():
    nan, inf = float("nan"), float("inf")
    rows = row(1_700_000_001_500_000, 1, [("train/loss", 2.5), ("train/learning_rate", 0.125)])
    rows += row(1_700_000_002_250_000, 300, [("eval/loss", nan), ("a", inf), ("b", -inf)])
    ended = [record(exit=pb.RunExitRecord(exit_code=7))]
    OUT.write_bytes(file(begin("a run") + rows + ended))
    hashes = ""
    for length in [32_500 + i for i in range(40)] + [65_000, 100_000]:
        rows = row(1_700_000_001_500_000, 1, [("train/loss", 2.5)])
        made = file(begin("n" * length) + rows + [record(exit=pb.RunExitRecord())])
        hashes += hashlib.sha256(made).hexdigest()
    print("CUT", hashlib.sha256(hashes.encode()).hexdigest())


if __name__ == "__main__":
    main()
