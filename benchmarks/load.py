"""Users of a server over HTTP, and how long they wait: a JSON line for each number of them.

    python -m mdlm_jax.serve --workdir=RUN --port=8000 --slots=32 --queue=256
    python -m benchmarks.load [--users 1 8 32 128] [--seconds=30] [--steps 16 32 64]

A soak is one number of users for long, with a line a minute and users who behave badly:

    python -m benchmarks.load --users 4 --rude=4 --seconds=1800 --every=60

Each user asks for a row of nothing but masks as a stream, reads it to its end, and asks again at
once. What is written is compared with the text that the server wrote before, when nobody else
asked. Rude users leave in the middle of a stream, set deadlines that nobody can keep, and send
fields that are refused. After each number of users, all slots must be free again. Locust plays the
users.

| field | what it is |
|---|---|
| `requests_per_second`, `tokens_per_second` | that were written to their end |
| `first_p50_ms`, `first_p99_ms` | from a request to the first final text of its stream |
| `p50_ms`, `p99_ms` | from a request to its end; Locust keeps two digits |
| `refused` | answers 429: the user waits as `Retry-After` tells, and asks again |
| `errors` | what no user expected, by its status, code or exception |
| `rude` | what the others did, and how often |
| `memory_mb` | of the server's process, resident |
| `compilations` | of the server since it was ready |

Exit code 1: a text was another one, an answer had an error, nobody got one, or a slot stayed in
use.
"""

import locust  # first: it makes sockets and threads cooperative

# isort: split
import argparse
import collections
import itertools
import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent
import requests
from locust.env import Environment
from locust.stats import StatsEntry
from prometheus_client.parser import text_string_to_metric_families

SILENCE = 120.0  # seconds that a user waits for the next bytes
_SEEDS = 8


class Visitor(locust.User):
    """Someone who asks a server.

    Attributes:
      asked: bodies of requests, and the text of each.
      told: how often each thing happened since the last line.
      faults: how often a promise was broken, ever.
    """

    abstract = True
    asked: ClassVar[list[tuple[dict[str, Any], str]]] = []
    told: ClassVar[collections.Counter[str]] = collections.Counter()
    faults: ClassVar[collections.Counter[str]] = collections.Counter()
    _numbers = itertools.count()

    def on_start(self) -> None:
        """Of Locust."""
        self.draw = random.Random(next(self._numbers))
        self.session = _session()

    @locust.task
    def visit(self) -> None:
        """One request; what breaks it is counted."""
        body, text = self.draw.choice(self.asked)
        try:
            self.ask(body, text)
        except Exception as error:  # Locust would only log it
            self.fault(f"error {type(error).__name__}")
            gevent.sleep(0.1)

    def ask(self, body: dict[str, Any], text: str) -> None:
        """Asks once."""
        raise NotImplementedError

    def post(self, body: dict[str, Any]) -> requests.Response:
        """A request, whose answer is read as it comes."""
        return self.session.post(
            f"{self.host}/v1/completions", json=body, stream=True, timeout=SILENCE
        )

    def fault(self, name: str) -> None:
        """Counts a broken promise."""
        self.told[name] += 1
        self.faults[name] += 1


class Writer(Visitor):
    """Asks for a text, reads it to its end, and asks again at once."""

    def ask(self, body: dict[str, Any], text: str) -> None:
        """One text."""
        begun, first, found = time.monotonic(), None, ""
        with self.post({**body, "stream": True}) as response:
            if response.status_code == 429:
                self.told["refused"] += 1
                gevent.sleep(float(response.headers["Retry-After"]))
                return
            if response.status_code != 200:
                self.fault(f"error {response.status_code}")
                return
            for data in _events(response):
                if "error" in data:
                    self.fault(f"error {data['error']['code']}")
                    return
                found += "".join(choice["text"] for choice in data["choices"])
                if found and first is None:
                    first = time.monotonic()
        if found != text:
            self.fault("wrong")
        self._count("first", (first or time.monotonic()) - begun)
        self._count("end", time.monotonic() - begun)

    def _count(self, name: str, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="stream",
            name=name,
            response_time=1000 * seconds,
            response_length=0,
            exception=None,
            context={},
        )


class Rude(Visitor):
    """Leaves, hurries, errs."""

    wait_time = locust.between(0.02, 0.5)

    def ask(self, body: dict[str, Any], text: str) -> None:
        """One thing that a server has to bear."""
        del text
        self.draw.choice((self._leave, self._hurry, self._err))(body)

    def _leave(self, body: dict[str, Any]) -> None:
        with self.post({**body, "stream": True, "canvases": True}) as response:
            for _ in itertools.islice(_events(response), self.draw.randint(0, 3)):
                pass
            self._told("left", response, {200, 429})

    def _hurry(self, body: dict[str, Any]) -> None:
        with self.post({**body, "timeout": 0.01}) as response:
            self._told("hurried", response, {200, 429, 504})

    def _err(self, body: dict[str, Any]) -> None:
        with self.post({**body, "colour": "red"}) as response:
            self._told("erred", response, {400})

    def _told(self, what: str, response: requests.Response, accepted: set[int]) -> None:
        self.told[f"rude: {what}, {response.status_code}"] += 1
        if response.status_code not in accepted:
            self.fault(f"error {response.status_code}")


def _session() -> requests.Session:
    """One without the proxies of the environment."""
    session = requests.Session()
    session.trust_env = False
    return session


def _events(response: requests.Response) -> Iterator[dict[str, Any]]:
    """What a stream tells, piece by piece as it comes."""
    for line in response.iter_lines(chunk_size=None):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line.removeprefix(b"data: "))


def asked_of(host: str, length: int, steps: list[int]) -> list[tuple[dict[str, Any], str]]:
    """Requests of several steps and seeds, each with the text that nobody disturbed."""
    if "mdlm_slots_active" not in counted(host):
        raise SystemExit(f"error: {host}/metrics is not that of a server (mdlm_jax.serve)")
    session = _session()
    model = session.get(f"{host}/v1/models", timeout=10).json()["data"][0]["id"]
    found = []
    for seed, most in itertools.product(range(_SEEDS), steps):
        body = {"model": model, "prompt": f"{{mask:{length}}}", "seed": seed, "steps": most}
        answer = session.post(f"{host}/v1/completions", json=body, timeout=600)
        if answer.status_code != 200:
            raise SystemExit(f"error: the server says {answer.status_code}: {answer.text}")
        found.append((body, answer.json()["choices"][0]["text"]))
    return found


def counted(host: str) -> dict[str, float]:
    """What the server tells of itself, added up over its lanes."""
    page = _session().get(f"{host}/metrics", timeout=60).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def idle(host: str, seconds: float) -> bool:
    """Whether all slots are free, and nothing waits, within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = counted(host)
        if now["mdlm_slots_active"] == now["mdlm_queue_rows"] == 0:
            return True
        gevent.sleep(0.2)
    return False


def _line(environment: Environment, begun: float, length: int, host: str) -> dict[str, Any]:
    """What users saw since then, and what the server tells now."""
    seconds = time.monotonic() - begun
    first, end = (environment.stats.get(name, "stream") for name in ("first", "end"))
    told = collections.Counter(Visitor.told)
    line = {
        "seconds": round(seconds, 1),
        "requests": end.num_requests,
        "requests_per_second": round(end.num_requests / seconds, 2),
        "tokens_per_second": round(end.num_requests * length / seconds, 1),
        **_percentiles("first_", first),
        **_percentiles("", end),
        "refused": told["refused"],
        "wrong": told["wrong"],
        "errors": _named(told, "error "),
        "rude": _named(told, "rude: "),
    }
    now = counted(host)
    memory = now.get("process_resident_memory_bytes")  # on Linux
    line["memory_mb"] = memory and round(memory / 2**20, 1)
    line["compilations"] = int(now["mdlm_compilations_after_readiness_total"])
    return line


def _named(told: collections.Counter[str], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): count
        for name, count in sorted(told.items())
        if name.startswith(prefix)
    }


def _percentiles(name: str, entry: StatsEntry) -> dict[str, float]:
    return {f"{name}p{p}_ms": entry.get_response_time_percentile(p / 100) for p in (50, 99)}


def under_load(
    host: str, users: int, rude: int, *, seconds: float, every: float, length: int
) -> Iterator[dict[str, Any]]:
    """A line for each `every` seconds of that many users; the first second is not counted."""
    Writer.fixed_count, Rude.fixed_count = users, rude
    classes = [Writer, Rude] if rude else [Writer]
    environment = Environment(user_classes=classes, host=host, stop_timeout=SILENCE)
    runner = environment.create_local_runner()
    runner.start(users + rude, spawn_rate=users + rude)
    gevent.sleep(1)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until - 0.5:
            environment.stats.reset_all()
            Visitor.told.clear()
            begun = time.monotonic()
            gevent.sleep(min(every, until - begun))
            yield _line(environment, begun, length, host)
    finally:
        runner.quit()


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rude", type=int, default=0, help="users who behave badly, beside them")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each number of users")
    parser.add_argument("--every", type=float, default=None, help="seconds of a line")
    parser.add_argument("--length", type=int, default=128, help="masks of a request")
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--patience", type=float, default=20.0, help="seconds for slots to be free")
    given = parser.parse_args(arguments)
    if min(*given.users, *given.steps, given.length) < 1 or given.seconds <= 0 or given.rude < 0:
        parser.error("--users, --steps and --length must be at least 1, --seconds above 0")
    machine = platform.processor() or platform.machine()
    broken = False
    try:
        Visitor.asked = asked_of(given.host, given.length, given.steps)
        for users in given.users:
            written = 0
            for line in under_load(
                given.host,
                users,
                given.rude,
                seconds=given.seconds,
                every=given.every or given.seconds,
                length=given.length,
            ):
                print(json.dumps({"users": users, **line, "machine": machine}), flush=True)
                written += line["requests"]
            if not written:
                print(f"none of {users} users got a text", file=sys.stderr)
                broken = True
            if not idle(given.host, given.patience):
                print(f"slots stayed in use after {users} users", file=sys.stderr)
                broken = True
    except requests.RequestException as error:
        print(f"error: the server does not answer: {error}", file=sys.stderr)
        broken = True
    if Visitor.faults:
        print(f"broken: {dict(Visitor.faults)}", file=sys.stderr)
    return int(broken or bool(Visitor.faults))


if __name__ == "__main__":
    sys.exit(main())
