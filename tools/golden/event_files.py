"""The event file that `core/outbound/src/tensorboard.rs` is compared with, from TensorBoard itself.

python -m venv v && v/bin/pip install tensorboard==2.21.0 'setuptools<81'
v/bin/python tools/golden/event_files.py

Writes core/outbound/src/tests/golden/events.out.tfevents.golden. Given folders instead, it prints every
scalar that TensorBoard's EventAccumulator finds in them, one a line, for tests by hand.
"""

import pathlib
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = pathlib.Path(__file__).parents[2] / "core/outbound/src/tests/golden/events.out.tfevents.golden"


def scalars(time, step, values):
    parts = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
    return event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=parts))


def golden():
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    events = [
        event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=1700000001.0, step=7, session_log=start),
        scalars(1700000002.5, 7, [("train/loss", 2.5), ("train/learning_rate", 2e-5)]),
        scalars(1700000003.0, 300, [("eval/loss", float("nan")), ("train/größe", -0.0)]),
    ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


def show(folder):
    found = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0})
    found.Reload()
    for tag in sorted(found.Tags()["scalars"]):
        for event in found.Scalars(tag):
            print(tag, event.step, repr(event.value))


if __name__ == "__main__":
    if sys.argv[1:]:
        for folder in sys.argv[1:]:
            show(folder)
    else:
        golden()
