"""Strategies as a user names them: `threshold(0.9)`, `remask(cap, eta=0.02)`."""

import ast
import functools
import inspect
import re
from collections.abc import Callable
from typing import Literal, get_args, get_origin

from mdlm_jax.diffusion import Schedule, Strategy, strategies

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    name: getattr(strategies, name)
    for name in strategies.__all__
    if inspect.isfunction(getattr(strategies, name))
}


@functools.lru_cache(maxsize=256)
def strategy(spec: str, schedule: Schedule) -> Strategy:
    """The strategy that `spec` names: `exact_count`, `threshold(0.9)`, `remask(cap, eta=0.02)`.

    Words are text without quotes; everything else is a Python number. Equal arguments give equal
    strategies, which do not recompile.

    Args:
      spec: a name from `STRATEGIES`, with arguments where it takes any.
      schedule: the model's; passed to the strategies that take one.

    Raises:
      ValueError: no such strategy, or arguments that it does not take, in one line.
    """
    name, arguments, named = _parsed(spec)
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} must be one of {', '.join(STRATEGIES)}")
    function = STRATEGIES[name]
    extra = {"schedule": schedule} if "schedule" in inspect.signature(function).parameters else {}
    try:
        return function(*arguments, **named, **extra)
    except TypeError:  # another number of arguments, an unknown one, or a word for a number
        raise ValueError(f"strategy {spec!r}: it is {_signature(name)}") from None


def listing() -> str:
    """Every strategy with its arguments and what it does, in one line each."""
    return "\n".join(
        f"- {_signature(name)}: {_phrase(function)}" for name, function in STRATEGIES.items()
    )


def _parsed(spec: str) -> tuple[str, list, dict]:
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, [], {}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        named = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        return call.func.id, [_literal(x) for x in call.args], named
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of deep nesting
        shown = repr(spec if len(spec) <= 60 else f"{spec[:57]}...")
        raise ValueError(
            f"strategy {shown} cannot be read: write a name, or name(value, option=value)"
        ) from None


def _literal(node: ast.expr):
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _signature(name: str) -> str:
    taken = inspect.signature(STRATEGIES[name]).parameters.values()
    listed = ", ".join(_shown(p) for p in taken if p.name != "schedule")
    return f"{name}({listed})" if listed else name


def _phrase(function: Callable) -> str:
    """The first line of the docstring, without its source."""
    first = (inspect.getdoc(function) or "").partition("\n")[0]
    return re.sub(r" \([^()]*\)\.?$", "", first).rstrip(".")


def _shown(parameter: inspect.Parameter) -> str:
    """`eta`, `tau=0.5`, or what it may be, the default first: `grid=uniform|cosine`."""
    required = parameter.default is parameter.empty
    words = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
    if required:
        return f"{parameter.name}: {'|'.join(words)}" if words else parameter.name
    others = [word for word in words if word != parameter.default]
    return f"{parameter.name}={'|'.join([str(parameter.default), *others])}"
