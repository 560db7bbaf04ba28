"""Faults of regions under load, and what clients of the gateway get: a table.

    python -m benchmarks.faults [--faults=200] [--clients=16] [--down=2] [--retry_share=0.2]
    python -m benchmarks.faults --workdir=RUN [--regions=2] [--faults=20]

Three regions stand behind wires and a gateway. At random moments a region is killed and started
again, stopped for a while, or its answers are slowed, reset, cut, garbled or swallowed. All the
while clients ask: streams and whole answers, one choice or several, with deadlines. Each answer is
compared with the text that a region wrote for the same request before the first fault.

With --workdir the regions are `mdlm_jax.serve` of that run, else `benchmarks.failing_region`.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import platform
import random
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import failing_region, failing_wire
from benchmarks.fleet import FailingRegion, Gateway, Process, Server, Wire, call

KINDS = ("kill", "hang", *sorted(failing_wire.MODES), "garbage")
GRACE = 1.0  # seconds after its deadline in which a request must have ended
_GARBAGE = ("bad_json", "binary", "end", "error_event", "html", "no_fingerprint", "not_http")
_EACH = {
    "connect_s": 0.5, "first_byte_s": 2.0, "between_bytes_s": 1.0, "whole_s": 3.0,
    "breaker_open_s": 0.5, "breaker_open_most_s": 2.0,
}  # fmt: skip


@dataclasses.dataclass
class Seen:
    """One request, as its client saw it.

    Attributes:
      begun: seconds of `time.monotonic`; likewise `ended`.
      late: seconds beyond its deadline.
      end: 'text', 'WRONG', 'HUNG', or an error's code.
    """

    begun: float
    ended: float
    late: float
    end: str


@dataclasses.dataclass
class Fault:
    """One fault: its kind, and while it lasted."""

    kind: str
    begun: float
    ended: float = float("inf")


class Wrong(Exception):
    """An answer that breaks a promise."""


class Place:
    """A region and the wire before it."""

    def __init__(self, region: Process):
        self.region = region
        region.await_ready(600.0)
        self.wire = Wire(region)
        self.wire.await_ready()
        self.free = asyncio.Lock()

    def kill(self) -> None:
        """Ends both."""
        self.wire.kill()
        self.region.kill()


def bodies(model: str, draw: random.Random, count: int, deadline: float) -> list[dict[str, Any]]:
    """Requests, each with its seed."""
    made = []
    for number in range(count):
        body: dict[str, Any] = {"model": model, "seed": number, "n": draw.choice([1, 1, 2, 3])}
        body["prompt"] = f"a text {number} with [MASK] [MASK] and {{mask:6}} in it"
        body["stream"] = draw.random() < 0.7
        body["timeout"] = round(deadline * draw.uniform(0.6, 1.0), 1)
        if draw.random() < 0.3:
            body["logprobs"] = 0
        made.append(body)
    return made


def undisturbed(url: str, body: dict[str, Any]) -> list[str]:
    """The texts that a region writes by itself."""
    asked = {key: value for key, value in body.items() if key not in ("stream", "timeout")}
    status, answer = call(f"{url}/v1/completions", asked, timeout=120)
    assert status == 200, answer
    return [choice["text"] for choice in answer["choices"]]


async def ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], texts: list[str]
) -> Seen:
    """Asks once, and judges what comes."""
    begun, seconds = time.monotonic(), body["timeout"]
    try:
        async with asyncio.timeout(seconds + GRACE):
            async with session.post(f"{url}/v1/completions", json=body) as response:
                raw = (await response.read()).decode()
            end = _judged(response.status, response.content_type, raw, body["stream"], texts)
    except TimeoutError:
        end = "HUNG"
    except (Wrong, aiohttp.ClientError, ValueError, LookupError) as error:
        print(f"WRONG: {error!r} of {body}", file=sys.stderr)
        end = "WRONG"
    ended = time.monotonic()
    return Seen(begun, ended, ended - begun - seconds, end)


def _judged(status: int, kind: str, raw: str, stream: bool, texts: list[str]) -> str:
    """How an answer ended.

    Raises:
      Wrong: not as promised.
    """
    if status != 200:
        return _code(json.loads(raw))
    if not stream:
        found = [choice["text"] for choice in json.loads(raw)["choices"]]
        if found != texts:
            raise Wrong(f"{found} is not {texts}")
        return "text"
    if kind != "text/event-stream":
        raise Wrong(f"a stream of type {kind}")
    lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line.startswith("data:")]
    chunks = [json.loads(line) for line in lines[:-1]]
    told = collections.defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            told[choice["index"]] += choice["text"] or ""
    if len({(chunk["system_fingerprint"], chunk["id"]) for chunk in chunks}) > 1:
        raise Wrong("two versions or answers in one stream")
    if lines[-1] == "[DONE]":
        if [told[index] for index in range(len(texts))] != texts:
            raise Wrong(f"{dict(told)} is not {texts}")
        return "text"
    if not all(texts[index].startswith(text) for index, text in told.items()):
        raise Wrong(f"{dict(told)} does not begin {texts}")
    return f"{_code(json.loads(lines[-1]))} in a stream"


def _code(answer: dict[str, Any]) -> str:
    error = answer["error"]
    if not error["message"] or not error["code"]:
        raise Wrong(f"an error that is not clear: {error}")
    return error["code"]


async def strike(place: Place, fault: Fault, draw: random.Random, most: asyncio.Semaphore) -> None:
    """One fault, from its beginning until the region is well again."""
    async with place.free, most:
        fault.begun = time.monotonic()
        region = place.region
        if fault.kind == "kill":
            region.kill()
            await asyncio.sleep(draw.uniform(0.0, 0.5))
            region.start()
            await asyncio.to_thread(region.await_ready, 600.0)
        elif fault.kind == "hang":
            region.pause()
            await asyncio.sleep(draw.uniform(0.2, 3.0))
            region.go_on()
        elif fault.kind == "garbage" and isinstance(region, FailingRegion):
            words = {"mode": draw.choice(_GARBAGE), "after": draw.randint(0, 8)}
            await asyncio.to_thread(region.control, **words, times=draw.randint(1, 4))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(region.control)
        else:
            mode = "garble" if fault.kind == "garbage" else fault.kind
            await asyncio.to_thread(place.wire.fail, mode, draw.randint(1, 4))
            await asyncio.sleep(0.5)
        fault.ended = time.monotonic()


async def run(
    places: list[Place],
    gateway: Gateway,
    asked: list[Any],
    *,
    faults: int,
    clients: int,
    down: int,
    seed: int,
) -> tuple[list[Fault], list[Seen]]:
    """Load and faults, until all faults are over."""
    draw, done, seen = random.Random(seed), asyncio.Event(), list[Seen]()

    async def client(number: int) -> None:
        own = random.Random(f"{seed}/{number}")
        while not done.is_set():
            body, texts = own.choice(asked)
            seen.append(await ask(session, gateway.url, body, texts))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
        kinds = [KINDS[number % len(KINDS)] for number in range(faults)]
        draw.shuffle(kinds)
        struck = [Fault(kind, float("inf")) for kind in kinds]
        running, most = set[asyncio.Task[None]](), asyncio.Semaphore(down)
        for fault in struck:
            await asyncio.sleep(draw.uniform(0.0, 1.0))
            running.add(asyncio.create_task(strike(draw.choice(places), fault, draw, most)))
            if len(running) > 2 * len(places):
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*running)
        done.set()
    return struck, seen


def table(faults: list[Fault], seen: list[Seen]) -> str:
    """Per kind of fault, how the requests ended that ran while one lasted."""
    ends = sorted({each.end for each in seen} - {"text"})
    lines = [["fault", "times", "requests", "text", *ends]]
    for kind in (*KINDS, "none", "all"):
        times = [fault for fault in faults if fault.kind == kind]
        if kind in KINDS:
            met = [
                each
                for each in seen
                if any(f.begun < each.ended and each.begun < f.ended for f in times)
            ]
        else:
            met = [
                each
                for each in seen
                if kind == "all"
                or not any(f.begun < each.ended and each.begun < f.ended for f in faults)
            ]
        counts = collections.Counter(each.end for each in met)
        count = len(faults) if kind == "all" else len(times)
        lines.append(
            [kind, str(count), str(len(met)), *(str(counts[end]) for end in ("text", *ends))]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def leaked(places: list[Place], gateway: Gateway) -> dict[str, int]:
    """Requests, or rows of them, that still run a while after the last answer, by where they do."""
    found: dict[str, int] = {}
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        found = {"gateway": int(metrics(gateway)["mdlm_gateway_requests_running"])}
        for number, place in enumerate(places):
            if isinstance(place.region, FailingRegion):
                found[f"region {number}"] = place.region.stats()["running"]
            else:
                found[f"region {number}"] = _in_use(metrics(place.region))
        if not any(found.values()):
            break
        time.sleep(0.1)
    return found


def _in_use(counted: dict[str, float]) -> int:
    """Slots of a server that hold a row, and rows that wait for one, of all lanes."""
    lanes = [
        [value for name, value in counted.items() if name.partition("{")[0] == gauge]
        for gauge in ("mdlm_slots_active", "mdlm_queue_rows")
    ]
    assert all(lanes), "the server does not tell its slots and its queue"
    return int(sum(map(sum, lanes)))


def metrics(process: Process) -> dict[str, float]:
    """What the gateway, or a server, counted."""
    with urllib.request.urlopen(f"{process.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    parted = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in parted}


def _tries(counted: dict[str, float]) -> dict[str, int]:
    """Tries by result, over all regions."""
    found: dict[str, int] = {}
    for name, value in counted.items():
        if result := re.match(r'mdlm_gateway_tries_total\{.*result="(\w+)"', name):
            found[result[1]] = found.get(result[1], 0) + int(value)
    return found


@contextlib.contextmanager
def fleet(
    regions: int, workdir: str | None, folder: Path, retry_share: float
) -> Iterator[tuple[list[Place], Gateway]]:
    """Regions behind wires, and the gateway before them."""
    with contextlib.ExitStack() as stack:
        started: list[Process] = []
        for number in range(regions):
            log = folder / f"region-{number}.log"
            if workdir:  # one strategy is asked for, and one compiles sooner
                started.append(Server(workdir, "--strategies=exact_count", log=log))
            else:
                started.append(FailingRegion(delay=0.01))
            stack.callback(started[-1].kill)
        places = [Place(region) for region in started]
        for place in places:
            stack.callback(place.wire.kill)
        urls = {f"region-{number}": place.wire.url for number, place in enumerate(places)}
        limits = {"retry_share": retry_share, "retry_burst": max(20.0, 100 * retry_share)}
        gateway = Gateway(
            folder, urls, gateway=limits, every_region=_EACH, log=folder / "gateway.log"
        )
        stack.callback(gateway.kill)
        gateway.await_ready()
        yield places, gateway


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--regions", type=int, default=3)
    parser.add_argument("--down", type=int, default=0, help="regions at once, by default all but 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=10.0, help="the most of a request")
    parser.add_argument("--retry_share", type=float, default=0.2, help="of the gateway")
    parser.add_argument("--workdir", default=None)
    given = parser.parse_args(arguments)
    name = Path(given.workdir).name if given.workdir else failing_region.MODEL
    with (
        tempfile.TemporaryDirectory() as folder,
        fleet(given.regions, given.workdir, Path(folder), given.retry_share) as (places, gateway),
    ):
        draw = random.Random(given.seed)
        asked = [
            (body, undisturbed(places[0].region.url, body))
            for body in bodies(name, draw, 64, given.deadline)
        ]
        begun = time.monotonic()
        faults, seen = asyncio.run(
            run(
                places,
                gateway,
                asked,
                faults=given.faults,
                clients=given.clients,
                down=given.down or given.regions - 1,
                seed=given.seed,
            )
        )
        seconds = time.monotonic() - begun
        left, counted = leaked(places, gateway), metrics(gateway)
        told = (Path(folder) / "gateway.log").read_text()
    if "Traceback" in told:
        print(
            f"the gateway itself failed: {told[told.index('Traceback') :][:4000]}", file=sys.stderr
        )
    print(table(faults, seen))
    ends = collections.Counter(each.end for each in seen)
    times = sorted(each.ended - each.begun for each in seen)
    line = {
        "requests": len(seen),
        "texts": ends["text"],
        "errors": len(seen) - ends["text"] - ends["WRONG"] - ends["HUNG"],
        "wrong": ends["WRONG"],
        "hung": ends["HUNG"],
        "still_running": left,
        "tries": _tries(counted),
        "continued": int(counted["mdlm_gateway_streams_continued_total"]),
        "hedges": int(counted["mdlm_gateway_hedges_total"]),
        "retries_refused": int(counted["mdlm_gateway_retries_refused_total"]),
        "seconds": round(seconds, 1),
        "p50_s": round(statistics.median(times), 3),
        "p99_s": round(times[int(0.99 * (len(times) - 1))], 3),
        "latest_s": round(max(each.late for each in seen), 3),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(line))
    return int(bool(ends["WRONG"] or ends["HUNG"] or any(left.values())))


if __name__ == "__main__":
    sys.exit(main())
