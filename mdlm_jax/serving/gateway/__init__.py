"""A proxy before an ordered chain of regions, that users see as one server.

| module | what it holds |
|---|---|
| `app` | the ASGI app: paths, health, metrics |
| `asked` | a user's request as the regions are asked it: with a seed, a key, a deadline |
| `breaker` | the circuit breaker of a region |
| `budget` | how much may be tried again |
| `chain` | how the regions stand, and which is asked next |
| `exchange` | one request and its response, sent, counted and logged once |
| `failures` | why a try failed, and what the user is told in the end |
| `health` | the health checks |
| `latencies` | recent latencies, and their quantile |
| `metrics` | what is counted |
| `models` | what the regions offer together |
| `racing` | from tries to a result: retries and hedges |
| `regions` | `regions.toml` |
| `sse` | server-sent events from bytes |
| `streaming` | a stream that goes on in another region |
| `told` | what a client was told of a stream |
| `tries` | one try at one region |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
