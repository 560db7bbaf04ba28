"""What the gateway counts, for Prometheus."""

import functools

import prometheus_client as prometheus

from mdlm_jax.serving.gateway import breaker
from mdlm_jax.serving.gateway.budget import Budget
from mdlm_jax.serving.gateway.chain import Standing

_BREAKER = {breaker.CLOSED: 0.0, breaker.HALF_OPEN: 0.5, breaker.OPEN: 1.0}
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one gateway, in a registry of its own."""

    def __init__(self, standings: list[Standing], budget: Budget):
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "mdlm_gateway_requests",
            "Requests by how they ended: a status; broken, a stream that ended in an error; or "
            "gone, the client.",
            ("path", "ended"),
            registry=self.registry,
        )
        self.seconds = prometheus.Histogram(
            "mdlm_gateway_request_seconds",
            "From a request to its last byte.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.running = 0  # requests now
        running = prometheus.Gauge(
            "mdlm_gateway_requests_running", "Requests that run.", registry=self.registry
        )
        running.set_function(lambda: float(self.running))
        self.tries = prometheus.Counter(
            "mdlm_gateway_tries",
            "Tries by region and result: ok, cancelled, or why they failed.",
            ("region", "result"),
            registry=self.registry,
        )
        self.hedges = prometheus.Counter(
            "mdlm_gateway_hedges",
            "Requests that a second region was asked for while the first still ran.",
            registry=self.registry,
        )
        self.continued = prometheus.Counter(
            "mdlm_gateway_streams_continued",
            "Streams that another try went on with after text was told.",
            registry=self.registry,
        )
        self.no_budget = prometheus.Counter(
            "mdlm_gateway_retries_refused",
            "Retries and hedges that the budget did not allow.",
            registry=self.registry,
        )
        tokens = prometheus.Gauge(
            "mdlm_gateway_retry_tokens", "Retries that are left.", registry=self.registry
        )
        tokens.set_function(lambda: budget.tokens)
        healthy = prometheus.Gauge(
            "mdlm_gateway_region_healthy",
            "1 if the region's health checks succeed.",
            ("region",),
            registry=self.registry,
        )
        state = prometheus.Gauge(
            "mdlm_gateway_region_breaker",
            "The region's circuit breaker: 0 closed, 0.5 half-open, 1 open.",
            ("region",),
            registry=self.registry,
        )
        for each in standings:
            name = each.region.name
            healthy.labels(name).set_function(functools.partial(_health, each))
            state.labels(name).set_function(functools.partial(_breaker, each))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return prometheus.generate_latest(self.registry)


def _health(standing: Standing) -> float:
    return float(standing.healthy is True)


def _breaker(standing: Standing) -> float:
    return _BREAKER[standing.breaker.state]
