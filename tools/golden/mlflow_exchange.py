"""The exchange that `core/outbound/src/tests/mlflow.rs` repeats, as a real server answers it.

    python -m venv v && v/bin/pip install mlflow==3.17.2
    v/bin/mlflow server --host 127.0.0.1 --port 5055      (in an empty folder)
    python tools/golden/mlflow_exchange.py http://127.0.0.1:5055

Sends the requests below to the server, one after the other, and writes them with its answers to
core/outbound/src/tests/golden/mlflow.json. What the server named by itself is RUN and EXPERIMENT there, and
of an answer only what the program reads is kept. The test holds that the program sends these very
requests. Numbers that are not finite must be there when the server is asked again: that is checked here.
"""

import json
import pathlib
import sys
import urllib.error
import urllib.request

OUT = pathlib.Path(__file__).parents[2] / "core/outbound/src/tests/golden/mlflow.json"
NAME = "reports%20%26%20more"
API = "/api/2.0/mlflow/"


def pair(key, value):
    return {"key": key, "value": value}


def metric(key, value, at, step):
    return {"key": key, "value": value, "timestamp": at, "step": step}


def batch(metrics=(), params=()):
    return {"run_id": "RUN", "metrics": list(metrics), "params": list(params), "tags": []}


TAGS = [
    pair("mlflow.runName", "a run"),
    pair("mlflow.source.name", "forgelm"),
    pair("forgelm.run_id", "fg-0123456789ab"),
    pair("forgelm.version", "0.1.0"),
]
REQUESTS = [
    ("GET", f"experiments/get-by-name?experiment_name={NAME}", None),
    ("POST", "experiments/create", {"name": "reports & more"}),
    (
        "POST",
        "runs/create",
        {"experiment_id": "EXPERIMENT", "run_name": "a run", "start_time": 1700000000000, "tags": TAGS},
    ),
    ("POST", "runs/log-batch", batch(params=[pair("lora.r", "8"), pair("training.gr__e", "größer")])),
    (
        "POST",
        "runs/log-batch",
        batch(
            [
                metric("loss", 2.5, 1700000001000, 1),
                metric("rewards/margins", "NaN", 1700000001000, 1),
                metric("eval_loss", "-Infinity", 1700000002000, 1),
            ]
        ),
    ),
    ("POST", "runs/update", {"run_id": "RUN", "status": "FINISHED", "end_time": 1700000003000}),
    ("GET", f"experiments/get-by-name?experiment_name={NAME}", None),
    ("POST", "runs/update", {"run_id": "RUN", "status": "RUNNING"}),
    ("POST", "runs/log-batch", batch([metric("loss", 1.5, 1700000004000, 2)])),
    ("POST", "runs/update", {"run_id": "RUN", "status": "KILLED", "end_time": 1700000005000}),
    (
        "POST",
        "runs/search",
        {
            "experiment_ids": ["EXPERIMENT"],
            "filter": "tags.`forgelm.run_id` = 'fg-0123456789ab'",
            "max_results": 1,
        },
    ),
]


def send(server, method, path, body):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server + API + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def kept(answer):
    """What the program reads, and how the server says no."""
    if not isinstance(answer, dict):
        return answer
    if "runs" in answer:
        return {"runs": [{"info": {"run_id": run["info"]["run_id"]}} for run in answer["runs"]]}
    if "run" in answer:
        return {"run": {"info": {"run_id": answer["run"]["info"]["run_id"]}}}
    if "experiment" in answer:
        return {"experiment": {"experiment_id": answer["experiment"]["experiment_id"]}}
    if "run_info" in answer:
        return {"run_info": {"status": answer["run_info"]["status"]}}
    return {key: answer[key] for key in ("experiment_id", "error_code") if key in answer}


def main(server):
    names, exchange = {}, []
    for method, path, body in REQUESTS:
        text = json.dumps(body)
        for name, value in names.items():
            text = text.replace(f'"{name}"', json.dumps(value))
        status, answer = send(server, method, path, json.loads(text))
        answer = kept(answer)
        if path == "experiments/create":
            names["EXPERIMENT"] = answer["experiment_id"]
        if path == "runs/create":
            names["RUN"] = answer["run"]["info"]["run_id"]
        shown = json.dumps(answer)
        for name, value in names.items():
            shown = shown.replace(json.dumps(value), f'"{name}"')
        print(method, path, status, shown)
        exchange.append(
            {"method": method, "path": API + path, "body": body, "status": status, "answer": json.loads(shown)}
        )
    _, run = send(server, "GET", f"runs/get?run_id={names['RUN']}", None)
    found = {metric["key"]: metric["value"] for metric in run["run"]["data"]["metrics"]}
    assert found["loss"] == 1.5 and str(found["rewards/margins"]).lower() == "nan", found
    assert run["run"]["info"]["status"] == "KILLED"
    OUT.write_text(json.dumps(exchange, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
