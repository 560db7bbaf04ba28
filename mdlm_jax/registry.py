"""Keeps versions of models: registers them, names them by aliases, and goes back.

    python -m mdlm_jax.registry register --workdir=runs/quickstart --name=quickstart --steps=64
    python -m mdlm_jax.registry promote --name=quickstart --version=1
    python -m mdlm_jax.registry list
    python -m mdlm_jax.registry rollback --name=quickstart
    python -m mdlm_jax.registry split --name=quickstart --shares=champion=0.9,challenger=0.1

A version is parameters, tokenizer, sampler, default steps and dtype, and never changes. The same
weights with other steps are another version, and are stored once. `register` takes a run, what
export wrote, or any BERT of Hugging Face by its --checkpoint. With `--canary=canary.txt` it also
keeps how well the version denoises these texts, for servers that watch it (`serve --canary`).

`promote` points an alias, by default champion, to a version, and `rollback` points it back. Servers
of `models:/quickstart@champion` follow both, and those of `models:/quickstart` the shares of
`split` too.

Versions are kept by MLflow: in ./mlflow.db and ./mlruns, or where MLFLOW_TRACKING_URI says.
"""

import datetime
from collections.abc import Sequence
from typing import Any

from absl import flags

from mdlm_jax.host import command_line, nearest
from mdlm_jax.serving import digests
from mdlm_jax.serving.versions import references, registry, storage
from mdlm_jax.writing import requests

_NAME = flags.DEFINE_string("name", None, "Of the registered model.")
_WORKDIR = command_line.define_path("workdir", None, "register: folder of the run, or exported.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "register: instead, a folder of Hugging Face or a name of its hub."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "params"], "register: averaged (the default) or raw weights of a run."
)
_STEP = command_line.define_step()
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "register: of the activations; by default as in training.",
)
_STEPS = flags.DEFINE_integer("steps", None, "register: network evaluations. Default: 64.", 1)
_STRATEGY = flags.DEFINE_string(
    "strategy", None, "register: what each step writes, as of generate. Default: exact_count."
)
_BLOCKS = flags.DEFINE_integer("blocks", None, "register: parts filled one after the other.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "register: 0 takes the most likely tokens.")
_TOP_K = flags.DEFINE_integer("top_k", None, "register: draws among so many tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "register: draws within a nucleus.")
_MIN_P = flags.DEFINE_float("min_p", None, "register: drops tokens much less likely than the best.")
_REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", None, "register: above 1 makes tokens of the row less likely."
)
_GUIDANCE = flags.DEFINE_float("guidance", None, "register: weight of classifier-free guidance.")
_FORBID = flags.DEFINE_multi_string("forbid", None, "register: a token that is never written.")
_CANARY = flags.DEFINE_string(
    "canary",
    None,
    "register: globs of text files, of which the first 64 rows are denoised. The cross-entropy by "
    "mask rate is kept beside the version, for `serve --canary`.",
)
_VERSION = flags.DEFINE_integer("version", None, "promote: number of the version.", 1)
_ALIAS = flags.DEFINE_string("alias", "champion", "promote, rollback: champion, challenger, ...")
_SHARES = flags.DEFINE_string(
    "shares", None, 'split: such as champion=0.9,challenger=0.1; "" for none.'
)

_SAMPLER = (
    "steps", "strategy", "blocks", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "guidance", "forbid",
)  # fmt: skip
_OF_ACTION = {  # the flags of each, those that it needs first
    "register": (
        ("name",),
        ("workdir", "checkpoint", "weights", "step", "dtype", "canary", *_SAMPLER),
    ),
    "list": ((), ("name",)),
    "promote": (("name", "version"), ("alias",)),
    "rollback": (("name",), ("alias",)),
    "split": (("name", "shares"), ()),
}


def main(words: Sequence[str]) -> int:
    """Carries out what the first word says; returns the exit code."""
    with command_line.bad_input():
        action = _action(words)
        _check_flags(action)
        client = registry.connect()
        for line in _ACTIONS[action](client):
            print(line)
    return 0


def _action(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ValueError(f"give one of {', '.join(_OF_ACTION)}, not {' '.join(words) or 'nothing'}")
    (action,) = words
    if action not in _OF_ACTION:
        meant = nearest.meant(action, _OF_ACTION)
        raise ValueError(f"unknown action {action!r}{meant}: there are {', '.join(_OF_ACTION)}")
    return action


def _check_flags(action: str) -> None:
    needed, others = _OF_ACTION[action]
    for name in needed:
        if flags.FLAGS[name].value is None:
            raise ValueError(f"{action} needs --{name}")
    for name in dict.fromkeys(flag for pair in _OF_ACTION.values() for one in pair for flag in one):
        if flags.FLAGS[name].present and name not in needed + others:
            raise ValueError(f"--{name} is not for {action}")
    if _NAME.value is not None:
        references.check_name(_NAME.value)
    if action == "register":
        if _WORKDIR.value and _CHECKPOINT.value:
            raise ValueError("--workdir and --checkpoint exclude each other")
        if not (_WORKDIR.value or _CHECKPOINT.value):
            raise ValueError("register needs --workdir, or --checkpoint")


def _register(client: Any) -> list[str]:
    given = {name: flags.FLAGS[name].value for name in _SAMPLER}
    given = {name: value for name, value in given.items() if value is not None}
    made, is_new = registry.register(
        client,
        _NAME.value,
        _WORKDIR.value or _CHECKPOINT.value,
        requests.Options(**given),
        dtype=_DTYPE.value,
        weights=_WEIGHTS.value,
        step=_STEP.value,
        canary=_CANARY.value,
    )
    told = "registered" if is_new else "was registered before"
    lines = [f"{told}: models:/{made.name}/{made.number}, {_sampler(made)}, {made.version.dtype}"]
    curve = None if _CANARY.value is None else storage.canary_of(client, made)
    if curve is not None:
        figures = [f"{each.nats:.3f} at {each.rate:g}" for each in curve.points]
        lines += [f"canary, nats a masked token by mask rate: {', '.join(figures)}"]
    return lines


def _list(client: Any) -> list[str]:
    found = registry.list_versions(client, _NAME.value)
    if not found:
        return ["no versions"]
    rows = [("version", "aliases", "sampler", "dtype", "weights", "digest", "registered")]
    rows += [_row(each) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for name in dict.fromkeys(each.name for each in found):
        traffic = registry.names(client, name).traffic
        shares = [f"{alias} {share:g}" for alias, share in traffic.items()]
        lines += [f"requests for {name}: {', '.join(shares)}"] if shares else []
    return lines


def _row(each: storage.Registered) -> tuple[str, ...]:
    created = datetime.datetime.fromtimestamp(each.created / 1000)
    return (
        f"{each.name}/{each.number}",
        " ".join(each.aliases),
        _sampler(each),
        each.version.dtype,
        each.version.weights[:8],
        each.version.digest[:8],
        f"{created:%Y-%m-%d %H:%M}",
    )


def _sampler(each: storage.Registered) -> str:
    options = digests.set_options(each.version.defaults)
    strategy, steps = options.pop("strategy", "left_to_right"), options.pop("steps", None)
    parts = [strategy] + ([] if steps is None else [f"steps {steps}"])
    return ", ".join(parts + [f"{name} {value}" for name, value in options.items()])


def _promote(client: Any) -> list[str]:
    name, number, alias = _NAME.value, _VERSION.value, _ALIAS.value
    before = registry.promote(client, name, number, alias)
    if before == number:
        return [f"{name}@{alias} is version {number} already"]
    return [f"{name}@{alias} is version {number}" + (f", it was {before}" if before else "")]


def _rollback(client: Any) -> list[str]:
    before, now = registry.rollback(client, _NAME.value, _ALIAS.value)
    return [f"{_NAME.value}@{_ALIAS.value} is version {now} again, it was {before}"]


def _split(client: Any) -> list[str]:
    shares = references.parse_shares(_SHARES.value)
    registry.split(client, _NAME.value, shares)
    if not shares:
        return [f"requests for {_NAME.value}: all to its champion"]
    whole = sum(shares.values())
    told = [f"{alias} {share / whole:.1%}" for alias, share in shares.items()]
    return [f"requests for {_NAME.value}: {', '.join(told)}"]


_ACTIONS = {
    "register": _register,
    "list": _list,
    "promote": _promote,
    "rollback": _rollback,
    "split": _split,
}


if __name__ == "__main__":
    command_line.run(main, words=True)
