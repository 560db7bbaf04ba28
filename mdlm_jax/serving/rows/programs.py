"""The compiled programs of one kind of rows: begin, a round of ticks, forbidden tokens.

They are compiled ahead of time, for one shape each. So a wrong shape is an error, and no request
can compile anything. A round admits and stops rows, goes on for some ticks, and tells the host what
came of it, in one call: one array goes to the device and one comes back.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.host import parallel
from mdlm_jax.serving.rows import block_rows, given, whole_rows
from mdlm_jax.serving.rows.kinds import Kind, Seen

Array = jax.Array
PyTree = Any

_KEPT = 64  # programs of other models and kinds


class Programs(NamedTuple):
    """Compiled functions, for one shape each.

    Rows are the leaves of the state alone: compiled functions compare trees, and a strategy is not
    equal to itself with other leaves.

    Attributes:
      begin: `params -> rows`, all slots free.
      round: `(params, rows, forbidden, words, limits i32[2]) -> (rows, told)`. `words` is from
        `given`, `told` is for `read`. It takes the rows over. The limits are ticks: from the first
        on it ends when a row was done in it, at the second in any case, and before if no row is
        left.
      forbid: `(forbidden, slot i32[], ids bool[V]) -> forbidden`. It takes `forbidden` over.
    """

    begin: Callable[[PyTree], list[Array]]
    round: Callable[..., tuple[list[Array], Array]]
    forbid: Callable[..., Array]


class Told(NamedTuple):
    """What came of a round, on the host.

    Attributes:
      tokens, step, log_prob, evaluations, done: as in `Seen`.
      ticks: how many there were.
    """

    tokens: np.ndarray
    step: np.ndarray
    log_prob: np.ndarray
    evaluations: np.ndarray
    done: np.ndarray
    ticks: int


def compiled(kind: Kind, params: PyTree) -> Programs:
    """The programs of a kind of rows, for parameters of these shapes in these places. Kept.

    Args:
      kind: of the rows.
      params: on the mesh of the kind.
    """
    leaves, tree = jax.tree.flatten(params)
    return _compiled(kind, tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves))


@functools.lru_cache(maxsize=_KEPT)
def _compiled(kind: Kind, tree: Any, leaves: tuple) -> Programs:
    params = jax.tree.unflatten(
        tree, [jax.ShapeDtypeStruct(shape, dtype, sharding=at) for shape, dtype, at in leaves]
    )
    whole = parallel.replicated(kind.mesh)

    def jitted(function: Callable, *donated: int) -> Any:
        @functools.wraps(function)
        def on_mesh(*arguments):
            with parallel.use(kind.mesh):
                return function(*arguments)

        return jax.jit(on_mesh, out_shardings=whole, donate_argnums=donated)

    def placed(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    trees = []

    def begin(params: PyTree) -> list[Array]:
        leaves, tree = jax.tree.flatten(_begin(kind, params))
        trees.append(tree)
        return leaves

    def go_on(params: PyTree, leaves: list[Array], *rest: Array) -> tuple[list[Array], Array]:
        rows, told = _round(kind, params, jax.tree.unflatten(trees[0], leaves), *rest)
        return jax.tree.leaves(rows), told

    begun = jitted(begin).lower(params).compile()
    rows = [placed(leaf) for leaf in jax.eval_shape(begin, params)]
    forbidden = jax.ShapeDtypeStruct((kind.slots, kind.encoder.vocab_size), bool, sharding=whole)
    words = placed(given.nothing(kind.slots, kind.length, kind.numbers))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    ids = jax.ShapeDtypeStruct((kind.encoder.vocab_size,), bool, sharding=whole)
    limits = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=whole)
    lowered = jitted(go_on, 1).lower(params, rows, forbidden, words, limits)
    forbid = jitted(_forbid, 0).lower(forbidden, number, ids)
    return Programs(begin=begun, round=lowered.compile(), forbid=forbid.compile())


def _steps_of(kind: Kind) -> Any:
    """The module that knows such rows."""
    return whole_rows if kind.blocks is None else block_rows


def _begin(kind: Kind, params: PyTree) -> PyTree:
    words = jnp.asarray(given.nothing(kind.slots, kind.length, kind.numbers))
    told = given.unpack(words, kind.length)
    filled = jnp.full(told.tokens.shape, kind.mask_id)
    free = told._replace(tokens=filled, fill=jnp.zeros(filled.shape, bool))
    return _steps_of(kind).begun(kind, params, free)


def _round(
    kind: Kind, params: PyTree, rows: PyTree, forbidden: Array, words: Array, limits: Array
) -> tuple[PyTree, Array]:
    told, own = given.unpack(words, kind.length), _steps_of(kind)
    rows = jax.lax.cond(
        (told.action != given.KEEP).any(),
        lambda: own.admitted(kind, params, rows, told),
        lambda: rows,
    )
    before, one_step = own.done(rows), own.stepper(kind, params, rows, forbidden)

    def goes_on(carry: tuple[Array, PyTree]) -> Array:
        tick, rows = carry
        done = own.done(rows)
        over = (tick >= limits[0]) & (done != before).any()
        return (tick < limits[1]) & ~over & ~done.all()

    def one_tick(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        tick, rows = carry
        return tick + 1, one_step(rows)

    tick, rows = jax.lax.while_loop(goes_on, one_tick, (jnp.int32(0), rows))
    return rows, _told(own.seen(kind, rows), tick)


def _told(seen: Seen, ticks: Array) -> Array:
    """i32[S, 3 L + 3]."""
    log_prob = jax.lax.bitcast_convert_type(seen.log_prob, jnp.int32)
    ends = [seen.evaluations, seen.done.astype(jnp.int32), jnp.broadcast_to(ticks, seen.done.shape)]
    return jnp.concatenate([seen.tokens, seen.step, log_prob, jnp.stack(ends, axis=1)], axis=1)


def read(told: Array) -> Told:
    """What a round told. It waits for the device."""
    words = np.asarray(told)
    length = (words.shape[1] - 3) // 3
    tokens, step, log_prob, ends = np.split(words, [length, 2 * length, 3 * length], axis=1)
    return Told(
        tokens=tokens,
        step=step,
        log_prob=log_prob.view(np.float32),
        evaluations=ends[:, 0],
        done=ends[:, 1] > 0,
        ticks=int(ends[0, 2]),
    )


def _forbid(forbidden: Array, slot: Array, ids: Array) -> Array:
    return forbidden.at[slot].set(ids)
