"""The name that a user probably meant, for messages."""

import difflib
from collections.abc import Iterable


def meant(name: str, names: Iterable[str]) -> str:
    """` (do you mean NAME?)` with the nearest of the names; '' if none is near."""
    near = difflib.get_close_matches(name, [*names], n=1, cutoff=0.5)
    return f" (do you mean {near[0]}?)" if near else ""
