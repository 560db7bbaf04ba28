"""What one replica counts, for Prometheus: `/metrics`.

    watching = Metrics(engine, catalog)
    make_app(engine, catalog, mounts={"/metrics": watching}, tell=watching.tell)

What requests do is counted as they end. All else is read from the engine and the device when it is
asked for. Everything is in a registry of its own. Labels are names of models, endpoints, outcomes,
lengths of rows, strategies and mask rates of the server: nothing that a user wrote.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import prometheus_client as prometheus
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import mdlm_jax
from mdlm_jax.serving.batching import stats
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.offering.offers import Catalog
from mdlm_jax.serving.watching.quality import Quality, Told
from mdlm_jax.serving.watching.steering import Steering

FIRST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SECONDS = (*FIRST_SECONDS[1:], 120, 300)

_ENDPOINTS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/alternatives": "alternatives",
}
_OF_STATUS = {429: "full", 499: "cancelled", 503: "unready", 504: "deadline"}
OUTCOMES = ("answered", "refused", *_OF_STATUS.values(), "failed")

# Of a lane: name, what it is, whether it only grows, and where it is found.
_OF_LANES = (
    ("slots", "Rows that are written at a time, at most.", False, lambda x: x.slots),
    ("slots_active", "Slots that hold a row.", False, lambda x: x.active),
    ("queue_rows", "Rows that wait for a slot.", False, lambda x: x.queued),
    ("rounds", "Calls of the device.", True, lambda x: x.counts.rounds),
    ("ticks", "Evaluations of all slots at once.", True, lambda x: x.counts.ticks),
    ("rows_written", "Rows that were written to their end.", True, lambda x: x.counts.rows),
    (
        "evaluations",
        "Network evaluations of the rows that were written to their end.",
        True,
        lambda x: x.counts.evaluations,
    ),
    ("tokens", "Tokens that were written in these rows.", True, lambda x: x.counts.tokens),
    ("host_seconds", "Time of the host's work for rounds.", True, lambda x: x.counts.host_seconds),
)
# Likewise, but of lanes with the same labels the largest counts.
_WORST_OF_LANES = (
    (
        "queue_oldest_seconds",
        "How long the row has waited that waits longest for a slot; 0 if none waits.",
        lambda x: x.oldest,
    ),
    ("tick_seconds", "Of one tick, lately.", lambda x: x.tick_seconds),
)
_MEMORY = (
    ("used", "bytes_in_use", "Memory of the device in use."),
    ("peak", "peak_bytes_in_use", "The most memory of the device that was in use."),
    ("limit", "bytes_limit", "Memory of the device that may be used."),
)

Labels = tuple[str, ...]


class Metrics:
    """The metrics of a server, and the ASGI app that tells them.

    Attributes:
      registry: of all of them.
    """

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        steering: Steering | None = None,
        quality: Quality | None = None,
    ):
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "mdlm_requests",
            "Requests by how they ended: answered; refused, a request that nobody could answer; "
            "full (429); deadline (504); cancelled, by the client; unready (503); failed (500).",
            ("endpoint", "model", "outcome"),
            registry=self.registry,
        )
        self._seconds = prometheus.Histogram(
            "mdlm_request_seconds",
            "From a request to the end of its answer, of those that were answered.",
            ("endpoint", "model"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._first = prometheus.Histogram(
            "mdlm_first_token_seconds",
            "From a request to the first text of its stream.",
            ("endpoint", "model"),
            buckets=FIRST_SECONDS,
            registry=self.registry,
        )
        prometheus.ProcessCollector(registry=self.registry)
        self.registry.register(_Server(engine, catalog, steering, quality))

    def tell(self, told: Mapping[str, Any]) -> None:
        """Counts a request that has ended; `told` is what its log line says."""
        endpoint = _ENDPOINTS.get(told["path"])
        if endpoint is None:
            return
        model, outcome = told.get("model", ""), _outcome(told["status"])
        for each in OUTCOMES:  # a rate sees how a counter grows, not that it is there
            self._requests.labels(endpoint, model, each)
        self._requests.labels(endpoint, model, outcome).inc()
        if outcome == "answered":
            self._seconds.labels(endpoint, model).observe(told["ms"] / 1000)
        if "first_ms" in told:
            self._first.labels(endpoint, model).observe(told["first_ms"] / 1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI: the page that Prometheus reads."""
        accepted = Request(scope).headers.get("accept", "")
        encode, kind = choose_encoder(accepted)
        page = await asyncio.to_thread(encode, self.registry)
        await Response(page, media_type=kind)(scope, receive, send)


def _outcome(status: int) -> str:
    if status < 400:
        return "answered"
    return _OF_STATUS.get(status, "failed" if status >= 500 else "refused")


class _Server:
    """What is read when it is asked for: the engine, models, policy, canaries, devices."""

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        steering: Steering | None,
        quality: Quality | None,
    ):
        self._engine, self._catalog = engine, catalog
        self._steering, self._quality = steering, quality

    def collect(self) -> Iterator[Metric]:
        """Of a collector of Prometheus."""
        told = self._engine.stats()
        yield _one("mdlm_ready", "1 while requests are taken.", float(told.ready))
        yield _count(
            "mdlm_compilations_after_readiness",
            "Programs that were compiled where none should be: stays 0.",
            told.compilations,
        )
        yield _count("mdlm_rows_taken", "Rows that the engine took.", told.taken)
        yield _count("mdlm_rows_refused", "Rows that it refused, for its queue was full.",
                     told.refused)  # fmt: skip
        ended = CounterMetricFamily(
            "mdlm_rows_ended",
            "Rows by how they ended: done, cancelled, deadline, failed or stopped.",
            labels=("how",),
        )
        for how, count in sorted(told.ended.items()):
            ended.add_metric((how,), count)
        yield ended
        yield from _of_lanes(told.lanes)
        yield from _of_devices()
        yield _build()
        yield self._models()
        yield from _of_policy(self._steering)
        yield from _of_canaries({} if self._quality is None else self._quality.told())

    def _models(self) -> Metric:
        family = GaugeMetricFamily(
            "mdlm_model_info",
            "Models that are served, by the length of their rows: always 1.",
            labels=("model", "length", "fingerprint"),
        )
        offers = {offer.deployment: offer for offer in self._catalog.listed()}
        for name, offer in sorted(offers.items()):
            for length, fingerprint in sorted(offer.fingerprints.items()):
                family.add_metric((name, str(length), fingerprint), 1)
        return family


def _of_lanes(lanes: tuple[stats.LaneStats, ...]) -> Iterator[Metric]:
    names = ("model", "length", "strategy", "guided")
    for name, text, grows, find in _OF_LANES:
        kind = CounterMetricFamily if grows else GaugeMetricFamily
        family = kind(f"mdlm_{name}", text, labels=names)
        for labels, same in _by_labels(lanes).items():
            family.add_metric(labels, sum(map(find, same)))
        yield family
    for name, text, find in _WORST_OF_LANES:
        family = GaugeMetricFamily(f"mdlm_{name}", text, labels=names)
        for labels, same in _by_labels(lanes).items():
            family.add_metric(labels, max(map(find, same)))
        yield family


def _by_labels(lanes: tuple[stats.LaneStats, ...]) -> dict[Labels, list[stats.LaneStats]]:
    """Deployments of the same weights share lanes; lanes of removed ones have none."""
    found: dict[Labels, list[stats.LaneStats]] = {}
    for lane in lanes:
        labels = ("+".join(sorted(lane.deployments)), str(lane.length), lane.strategy)
        found.setdefault((*labels, str(lane.guided).lower()), []).append(lane)
    return found


def _of_devices() -> Iterator[Metric]:
    """Their memory, where they tell it: a CPU does not."""
    told = {str(each.id): each.memory_stats() or {} for each in jax.local_devices()}
    for name, key, text in _MEMORY:
        family = GaugeMetricFamily(f"mdlm_device_memory_{name}_bytes", text, labels=("device",))
        for device, figures in told.items():
            if key in figures:
                family.add_metric((device,), figures[key])
        yield family


def _of_policy(steering: Steering | None) -> Iterator[Metric]:
    """Without a policy there is nothing to tell but the names."""
    stage = GaugeMetricFamily(
        "mdlm_policy_stage",
        "The stage that requests are admitted in; 0 is full service.",
        labels=(),
    )
    moves = CounterMetricFamily(
        "mdlm_policy_moves", "Moves between stages: down, to less, or back.", labels=("direction",)
    )
    requests = CounterMetricFamily(
        "mdlm_policy_requests",
        "Requests by the stage that they were admitted in, which is 0 for pinned ones.",
        labels=("stage", "pinned"),
    )
    if steering is not None:
        stage.add_metric((), steering.stage)
        for direction, count in steering.moves.items():
            moves.add_metric((direction,), count)
        for (number, pinned), count in sorted(steering.admitted.copy().items()):
            requests.add_metric((str(number), str(pinned).lower()), count)
    yield from (stage, moves, requests)


def _of_canaries(told: Mapping[str, Told]) -> Iterator[Metric]:
    """Without canaries there is nothing to tell but the names."""
    nats = GaugeMetricFamily(
        "mdlm_canary_nats",
        "Cross-entropy of a masked token of the canary, measured lately.",
        labels=("model", "rate"),
    )
    reference = GaugeMetricFamily(
        "mdlm_canary_reference_nats",
        "The same when the version was registered, or when this server first measured it.",
        labels=("model", "rate", "source"),
    )
    error = GaugeMetricFamily(
        "mdlm_canary_reference_error_nats",
        "The standard error of the reference, over the rows of the canary.",
        labels=("model", "rate"),
    )
    measured = GaugeMetricFamily(
        "mdlm_canary_measured_timestamp_seconds",
        "When the canary was last measured, or else when it began; in seconds since 1970.",
        labels=("model",),
    )
    for name, each in told.items():
        measured.add_metric((name,), each.at)
        for point in each.measured:
            nats.add_metric((name, f"{point.rate:g}"), point.nats)
        for point in each.reference:
            reference.add_metric((name, f"{point.rate:g}", each.source), point.nats)
            error.add_metric((name, f"{point.rate:g}"), point.error)
    yield from (nats, reference, error, measured)


def _build() -> Metric:
    family = GaugeMetricFamily(
        "mdlm_build_info",
        "Versions of the software and the kind of device: always 1.",
        labels=("version", "jax", "device"),
    )
    family.add_metric(
        (mdlm_jax.__version__, jax.__version__, jax.local_devices()[0].device_kind), 1
    )
    return family


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
