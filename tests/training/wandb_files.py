"""What Weights & Biases wrote offline, read back."""

import json
import struct
from pathlib import Path

import wandb
from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 2**15, 7  # of LevelDB's log format, and of the file and each piece of a record


def _payloads(path: Path):
    contents, at, begun = path.read_bytes(), _HEADER, b""
    assert contents[:4] == b":W&B"
    while at + _HEADER <= len(contents):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", contents[at : at + _HEADER])
        if kind == 0:
            return
        begun += contents[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # whole, or the last piece
            yield begun
            begun = b""


def _value(item):
    return json.loads(item.value_json)


def read(folder: Path) -> dict:
    """Of one start: `{id, project, name, config, history, axes, exit_code}`."""
    (path,) = folder.glob("*.wandb")
    told = {"history": [], "config": {}, "axes": [], "exit_code": None}
    for payload in _payloads(path):
        record = wandb_internal_pb2.Record.FromString(payload)
        match record.WhichOneof("record_type"):
            case "run":
                told |= {name: getattr(record.run, name) for name in ("project", "display_name")}
                told["id"] = record.run.run_id
                told["config"] = {each.key: _value(each) for each in record.run.config.update}
            case "history":
                row = {each.key or "/".join(each.nested_key): _value(each)
                       for each in record.history.item}  # fmt: skip
                told["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
            case "metric":
                told["axes"].append((record.metric.glob_name, record.metric.step_metric))
            case "exit":
                told["exit_code"] = record.exit.exit_code
    return told


def starts(workdir: Path) -> list[dict]:
    """What each start of a run wrote, in order."""
    wandb.teardown()  # its own process may be writing yet
    folders = sorted(
        (workdir / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime
    )
    return [read(folder) for folder in folders]
