"""A canary: texts whose cross-entropy by mask rate tells whether a model is what it was.

    canary = canary.of(model, "canary.txt")
    read = canary.compiled(made, params)  # one program for all rates
    canary.points(made, [read(piece, params) for piece in made.pieces])

The masks are drawn once, with exact counts and fixed keys. They depend on no parameter. So equal
parameters give equal figures on the same kind of device, and what changes is the model. The figures
are those of `evaluate --text` of the same files, of as many rows.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax import data
from mdlm_jax.diffusion import AtRate
from mdlm_jax.diffusion.processes.corruption import Corrupted
from mdlm_jax.evaluation.bounds.rate_curves import AtRates
from mdlm_jax.evaluation.samples import text_metrics
from mdlm_jax.host import parallel
from mdlm_jax.runs.families import network_of
from mdlm_jax.runs.models import Model

PyTree = Any

ROWS = 64  # that are measured, at most
FEWEST = 8  # of which a standard error is worth something
AT_ONCE = 8  # rows of a piece: less work than a round of most servers
FORMAT = 1
_SUMS = ("nats", "masked")  # of AtRate
_SEED = 0  # that of `evaluate`


class Piece(NamedTuple):
    """Some rows at one mask rate, on the host: a call of the program.

    Attributes:
      rate: of the masks.
      batch: of `data.eval_batches`.
      corrupted: the rows with their masks.
    """

    rate: float
    batch: Mapping[str, np.ndarray]
    corrupted: Corrupted


class Point(NamedTuple):
    """The cross-entropy of masked tokens at a mask rate.

    Attributes:
      rate: in (0, 1].
      nats: mean of a masked token.
      error: its standard error over the rows.
    """

    rate: float
    nats: float
    error: float


class Curve(NamedTuple):
    """What was measured, to be kept.

    Attributes:
      digest: of the canary.
      points: by ascending rate.
    """

    digest: str
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        points = [point._asdict() for point in self.points]
        return {"format": FORMAT, "digest": self.digest, "points": points}


@dataclasses.dataclass(frozen=True, eq=False)
class Canary:
    """The texts with their masks, and how they are read. It holds no parameters.

    Attributes:
      halves: of the model's family.
      pieces: all rows at each rate.
      rows: how many there are.
      length: tokens of a row.
    """

    halves: AtRates
    pieces: tuple[Piece, ...]
    rows: int
    length: int

    @property
    def digest(self) -> str:
        """sha256 of all that decides what is measured, but for the model."""
        digest = hashlib.sha256(f"{self.rows} {self.length}".encode())
        for piece in self.pieces:
            digest.update(f"{piece.rate:.6f}".encode())
            corrupted = piece.corrupted
            filled = corrupted.weights > 0
            for array in (corrupted.canvas, corrupted.targets * filled, filled):
                digest.update(np.ascontiguousarray(array).view(np.uint8))
        return digest.hexdigest()


def of(model: Model, files: str) -> Canary:
    """The canary of a model: the first rows of the text, corrupted at each rate.

    Args:
      model: of any family.
      files: globs of text and tables, as of `evaluate --text`.

    Raises:
      ValueError: a file is not there or cannot be read, or holds less than `FEWEST` rows.
    """
    try:
        rows = data.read_rows(files, model.tokenizer, model.length)[:ROWS]
    except ValueError as error:
        raise ValueError(f"--canary: {str(error).removeprefix('files: ')}") from None
    if len(rows) < FEWEST:
        raise ValueError(
            f"--canary: {files!r} fill {len(rows)} of the {FEWEST} rows of {model.length} tokens "
            "that an error takes"
        )
    halves = model.family.make_at_rates(
        model.objective,
        model.encoder,
        start_id=data.special_ids(model.tokenizer).sep,
        seed=_SEED,
    )
    pieces = []
    for batch in data.eval_batches(rows, batch_size=AT_ONCE):
        for rate in halves.rates:  # op by op: what is compiled for one rate serves them all
            drawn = halves.corrupt(jax.tree.map(jnp.asarray, batch), rate, whole=True)
            pieces.append(Piece(rate, batch, jax.device_get(drawn)))
    return Canary(halves, tuple(pieces), len(rows), model.length)


def compiled(canary: Canary, params: PyTree) -> Callable[[Piece, PyTree], AtRate]:
    """`(piece, params) -> sums`, on the host: compiled, and run once.

    Args:
      canary: what is measured.
      params: on a mesh. Others of these shapes in these places can be given later.
    """
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    whole = parallel.replicated(mesh)

    def on_mesh(params: PyTree, batch: Mapping[str, jax.Array], corrupted: Corrupted) -> AtRate:
        with parallel.use(mesh):
            return canary.halves.read(params, batch, corrupted)

    def placed(piece: Piece) -> tuple:
        return jax.device_put((piece.batch, piece.corrupted), whole)

    jitted = jax.jit(on_mesh, out_shardings=whole)
    program = jitted.lower(params, *placed(canary.pieces[0])).compile()

    def read(piece: Piece, params: PyTree) -> AtRate:
        return jax.device_get(program(params, *placed(piece)))

    read(canary.pieces[0], params)
    return read


def points(canary: Canary, read: Sequence[AtRate]) -> tuple[Point, ...]:
    """The curve, from what was read of each piece."""
    made = []
    for rate in canary.halves.rates:
        own = [x for piece, x in zip(canary.pieces, read, strict=True) if piece.rate == rate]
        nats, masked = (np.concatenate([getattr(x, name) for x in own]) for name in _SUMS)
        mean = text_metrics.mean(nats[masked > 0].astype(np.float64), masked[masked > 0])
        # A mean leaves rows out that are no number. Here they are what is looked for.
        made.append(Point(rate, *(mean if np.isfinite(nats).all() else (math.nan, math.nan))))
    return tuple(made)


def measure(model: Model, files: str) -> Curve:
    """The curve of a model that nobody else uses.

    Raises:
      ValueError: as `of`, or the model is broken: it gives no finite number.
    """
    made = of(model, files)
    params = network_of(model.encoder).prepare(model.params, model.encoder)
    read = compiled(made, params)
    curve = points(made, [read(piece, params) for piece in made.pieces])
    for point in curve:
        if not math.isfinite(point.nats):
            raise ValueError(f"--canary: at the mask rate {point.rate:g} {point.nats} nats")
    return Curve(made.digest, curve)


def from_json(fields: Mapping[str, Any]) -> Curve:
    """What `Curve.as_json` gave.

    Raises:
      ValueError: it is none, or of a newer format.
    """
    try:
        if fields["format"] != FORMAT:
            raise ValueError(f"a canary of the format {fields['format']}: this reads {FORMAT}")
        read = [Point(*(float(x[name]) for name in Point._fields)) for x in fields["points"]]
        return Curve(str(fields["digest"]), tuple(read))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no canary that is known here: {error}") from None
