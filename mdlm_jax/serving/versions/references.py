"""References to versions as a user writes them, and the shares of traffic between them."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

SCHEME = "models:/"
_FORM = re.compile(r"models:/(?P<name>[\w.-]+)(?:/(?P<number>[0-9]+)|@(?P<alias>[\w.-]+))?")


class Reference(NamedTuple):
    """A version of a registered model.

    Attributes:
      name: of the model.
      alias: which is followed when it moves; None if a number is given.
      number: of the version.
    """

    name: str
    alias: str | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{SCHEME}{self.name}/{self.number}"
        return f"{SCHEME}{self.name}" + (f"@{self.alias}" if self.alias else "")


def is_reference(text: str) -> bool:
    """Whether a text names a registered model rather than a folder."""
    return text.startswith("models:")


def parse(text: str) -> Reference:
    """The reference of `models:/name`, `models:/name@champion` or `models:/name/3`.

    Raises:
      ValueError: it is another text.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} names no version: write models:/name, models:/name@champion or "
            "models:/name/3"
        )
    number = found["number"]
    return Reference(found["name"], found["alias"], None if number is None else int(number))


def check_name(name: str) -> None:
    """Refuses a name of a registered model that a reference or a query could not hold.

    Raises:
      ValueError: it has other characters than letters, digits, dots, - and _.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name must be letters, digits, dots, - and _, not {name!r}")


def parse_shares(text: str) -> dict[str, float]:
    """The shares of `champion=0.9,challenger=0.1`; '' is none.

    Raises:
      ValueError: it is no such list, or as `refused`.
    """
    shares = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"{part!r} is no share: write champion=0.9,challenger=0.1") from None
    refused(shares)
    return shares


def refused(shares: Mapping[str, float]) -> None:
    """Refuses what are no shares.

    Raises:
      ValueError: one is below 0 or no number, or all are 0.
    """
    for name, share in shares.items():
        if not 0 <= share < math.inf:
            raise ValueError(f"the share of {name} must be 0 or more, not {share:g}")
    if shares and not sum(shares.values()):
        raise ValueError("all shares are 0: one must take the requests")


def chosen(shares: Mapping[str, float], key: str) -> str:
    """The name that a key falls to: the same for the same key and shares, on every machine.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005): of
    the names' exponential variables with the shares as rates, drawn by the key, the least one wins.
    A change of shares moves as few keys as it can.

    Args:
      shares: not all 0; they need not add up to 1.
      key: of the request.
    """
    named = sorted(name for name, share in shares.items() if share > 0)
    return min(named, key=lambda name: -math.log(_uniform(name, key)) / shares[name])


def _uniform(name: str, key: str) -> float:
    """In (0, 1]."""
    text = f"{len(name)} {name} {key}".encode(errors="surrogatepass")
    return (1 + int.from_bytes(hashlib.sha256(text).digest()[:8], "big")) / 2**64
