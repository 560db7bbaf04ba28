"""`regions.toml`: the regions in the order of preference, and what the gateway does for them."""

import dataclasses
import re
import urllib.parse
from pathlib import Path
from typing import Any

from mdlm_jax.serving import tables
from mdlm_jax.serving.gateway import breaker


@dataclasses.dataclass(frozen=True)
class Region:
    """A server, a Ray Serve app or another gateway. Times are in seconds.

    Attributes:
      name: in logs, metrics and messages; by default the host of the url.
      url: without /v1, which the gateway adds.
      key_file: a file with the key that replaces the user's in `Authorization`. It is read again
        with each health check. '' passes the user's on.
      connect_s: until a connection stands.
      first_byte_s: until the first byte of a stream, from the beginning of the try.
      between_bytes_s: between two reads of a stream; comments that keep it alive count.
      whole_s: until an answer that is not streamed is there.
      health_path: asked with GET; 200 is healthy.
      health_every_s: between two checks.
      health_timeout_s: of a check.
      health_failures: failed checks in a row after which a region is left out; one that succeeds
        brings it back. A try that breaks is followed by a check at once.
      retry_after_most_s: a longer Retry-After is taken for this.
      breaker_failures: see `breaker.Rules`; likewise the others.
      breaker_least: the same.
      breaker_share: the same.
      breaker_window_s: the same.
      breaker_open_s: the same.
      breaker_open_most_s: the same.
      breaker_probes: the same.
    """

    url: str
    name: str = ""
    key_file: str = ""
    connect_s: float = tables.number(2.0, 0.001)
    first_byte_s: float = tables.number(10.0, 0.001)
    between_bytes_s: float = tables.number(10.0, 0.001)
    whole_s: float = tables.number(60.0, 0.001)
    health_path: str = "/readyz"
    health_every_s: float = tables.number(2.0, 0.01)
    health_timeout_s: float = tables.number(1.0, 0.001)
    health_failures: int = tables.number(2, 1, 100)
    retry_after_most_s: float = tables.number(30.0, 0.0)
    breaker_failures: int = tables.number(5, 1, 10_000)
    breaker_share: float = tables.number(0.5, 0.0, 1.0)
    breaker_least: int = tables.number(20, 1, 10_000)
    breaker_window_s: float = tables.number(10.0, 1.0)
    breaker_open_s: float = tables.number(5.0, 0.001)
    breaker_open_most_s: float = tables.number(60.0, 0.001)
    breaker_probes: int = tables.number(2, 1, 100)

    @property
    def rules(self) -> breaker.Rules:
        """Of its circuit breaker."""
        return breaker.Rules(
            failures=self.breaker_failures,
            share=self.breaker_share,
            least=self.breaker_least,
            window=self.breaker_window_s,
            open_for=self.breaker_open_s,
            open_most=max(self.breaker_open_s, self.breaker_open_most_s),
            probes=self.breaker_probes,
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """What holds for every request. Times are in seconds.

    Attributes:
      deadline_s: after which a request is answered with an error; a user may ask for less.
      tries: the most tries of a request, the first included.
      retry_share: retries and hedges a request, over all requests.
      retry_burst: of them the most at once.
      retries_per_s: of them what is allowed however few requests there are.
      hedge_quantile: of a region's recent latencies to the first text of a stream, or to a whole
        answer; who waits longer is asked in the next region too. 0 never hedges.
      hedge_least_s: the least that is waited before.
      max_requests: at once; more are refused with 503.
      max_body_bytes: of a request; more are refused with 413.
    """

    deadline_s: float = tables.number(120.0, 0.001)
    tries: int = tables.number(4, 1, 100)
    retry_share: float = tables.number(0.2, 0.0, 10.0)
    retry_burst: float = tables.number(20.0, 0.0, 1e6)
    retries_per_s: float = tables.number(1.0, 0.0, 1e6)
    hedge_quantile: float = tables.number(0.95, 0.0, 1.0)
    hedge_least_s: float = tables.number(0.05, 0.0)
    max_requests: int = tables.number(1024, 1, 10**6)
    max_body_bytes: int = tables.number(2**20, 1, 2**30)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of `regions.toml`."""

    regions: tuple[Region, ...]
    limits: Limits = Limits()


def read(path: str) -> Settings:
    """Reads `regions.toml`.

    Raises:
      ValueError: it is no TOML, a key is unknown or missing, or a value is not accepted.
      OSError: it, or a key file that it names, cannot be read.
    """
    table = tables.read(path)
    try:
        settings = _settings(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for region in settings.regions:
        read_key(region)
    return settings


def read_key(region: Region) -> str | None:
    """The key of a region; None if it has none.

    Raises:
      ValueError: the file holds no key, or more than one line.
      OSError: it cannot be read.
    """
    if not region.key_file:
        return None
    key = Path(region.key_file).expanduser().read_text(encoding="utf-8").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise ValueError(f"key_file of region {region.name}: {region.key_file} holds no key")
    return key


def _settings(table: dict[str, Any]) -> Settings:
    tables.known(table, ("gateway", "every_region", "region"), "there are the tables")
    regions = table.get("region", [])
    if not isinstance(regions, list) or not regions:
        raise ValueError("no region: begin each with [[region]], and give its url")
    every = tables.table(table.get("every_region", {}), "[every_region]")
    if own := {"name", "url"} & {*every}:
        raise ValueError(f"[every_region] has {min(own)}, which each [[region]] has of its own")
    limits = tables.table(table.get("gateway", {}), "[gateway]")
    found = []
    for number, each in enumerate(regions, 1):
        where = f"region {number}"
        found.append(_region({**every, **tables.table(each, where)}, where))
    names = [region.name for region in found]
    if double := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two regions have the name {min(double)}: give each a name of its own")
    return Settings(tuple(found), tables.build(Limits, limits, "[gateway]"))


def _region(given: dict[str, Any], where: str) -> Region:
    url = given.get("url")
    if not isinstance(url, str):
        raise ValueError(f"{where} has no url, such as http://localhost:8000")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{where}: url = {url}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"{where}: url = {url} is no address such as http://localhost:8000")
    if parts.username or parts.password:
        raise ValueError(f"{where}: url holds a password: give a key_file instead")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"{where}: url = {url} ends in /v1, which the gateway adds: leave it out")
    name = given.get("name") or parts.netloc
    region = tables.build(Region, {**given, "url": url.rstrip("/"), "name": name}, where)
    if not re.fullmatch(r"[\w.:\[\]-]{1,64}", name, re.ASCII):  # it goes into headers and labels
        raise ValueError(f"{where}: name = {name!r} must be of letters, digits, '.', '-' and '_'")
    if not region.health_path.startswith("/"):
        raise ValueError(f"{where}: health_path = {region.health_path} must begin with /")
    return region
