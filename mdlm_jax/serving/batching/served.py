"""What a deployment is, and the lanes that an engine makes of it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from mdlm_jax.diffusion import Strategy
from mdlm_jax.host import parallel
from mdlm_jax.runs.families import Blocks, network_of
from mdlm_jax.serving.batching.lanes import Lane
from mdlm_jax.serving.jobs import Job, Unknown
from mdlm_jax.serving.rows.kinds import Kind

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Deployment:
    """A model that an engine serves.

    Attributes:
      name: by which jobs name it.
      params: of the network, or what its `prepare` made of them. Those that lie on a mesh stay
        there; others are put on `mesh`. Two deployments of the same arrays share them.
      encoder: the config of the network.
      lengths: of the rows; each is a compiled shape.
      strategies: the kinds that are offered, by a name for people. Jobs may have other numbers.
      slots: rows of a compiled shape.
      padded: whether rows may have padding.
      blocks: of a model that writes blocks after a cache: those of each length; None for others.
      start_id: of a causal model, the token before a row; None for others.
      mesh: for parameters that lie on none; by default the first device of this process.

    Raises:
      ValueError: nothing is offered, or blocks of another length; it is named.
    """

    name: str
    params: PyTree
    encoder: Any
    lengths: tuple[int, ...]
    strategies: Mapping[str, Strategy]
    slots: int = 32
    padded: bool = False
    blocks: Mapping[int, Blocks] | None = None
    start_id: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        for name in ("lengths", "strategies"):
            if not getattr(self, name):
                raise ValueError(f"deployment {self.name!r}: {name} is empty")
        if self.slots < 1:
            raise ValueError(f"deployment {self.name!r}: slots is {self.slots}, at least 1 needed")
        if self.blocks is not None and {*self.lengths} - {*self.blocks}:
            without = min({*self.lengths} - {*self.blocks})
            raise ValueError(f"deployment {self.name!r}: blocks has none of the length {without}")


class Served(NamedTuple):
    """A deployment in an engine.

    Attributes:
      deployment: what it is of.
      params: on the mesh, in the form that evaluations use.
      mesh: of the parameters.
      lanes: by the kind of their rows.
    """

    deployment: Deployment
    params: PyTree
    mesh: Mesh
    lanes: dict[Kind, Lane]

    def lane_of(self, job: Job) -> Lane:
        """The lane that a job belongs in.

        Raises:
          Unknown: there is none of its length, or of its kind of strategy.
        """
        deployment, length = self.deployment, len(job.tokens)
        if length not in deployment.lengths:
            known = ", ".join(map(str, sorted(deployment.lengths)))
            raise Unknown(f"a row has {length} tokens: {deployment.name!r} takes {known}")
        guided = job.guidance is not None
        kind = _kind(deployment, self.mesh, length, job.strategy, guided=guided)
        if kind not in self.lanes and guided and not deployment.encoder.classes:
            raise Unknown(f"guidance is for models with classes: {deployment.name!r} has none")
        if kind not in self.lanes:
            known = ", ".join(deployment.strategies)
            raise Unknown(f"a strategy of another kind than {deployment.name!r} offers: {known}")
        return self.lanes[kind]


def serve(deployment: Deployment, others: Iterable[Served], limit: int) -> Served:
    """Puts the parameters on the mesh and compiles the lanes, but for those that are there already.

    Args:
      deployment: what is served.
      others: that are served already; those of the same parameters share them and their lanes.
      limit: jobs that wait in a lane, at most.
    """
    same = [other for other in others if _same(other.deployment.params, deployment.params)]
    mesh = _mesh_of(deployment)
    params = same[0].params if same else _prepared(deployment, mesh)
    known = {kind: lane for other in same for kind, lane in other.lanes.items()}
    lanes = {}
    for length in deployment.lengths:
        for name, strategy in deployment.strategies.items():
            for guided in (False, True) if deployment.encoder.classes else (False,):
                kind = _kind(deployment, mesh, length, strategy, guided=guided)
                lanes[kind] = known.get(kind) or Lane(kind, name, params, limit)
    return Served(deployment, params, mesh, lanes)


def _kind(
    deployment: Deployment, mesh: Mesh, length: int, strategy: Strategy, *, guided: bool
) -> Kind:
    return Kind(
        encoder=deployment.encoder,
        mesh=mesh,
        slots=deployment.slots,
        length=length,
        strategy=jax.tree.structure(strategy),
        guided=guided,
        padded=deployment.padded,
        blocks=None if deployment.blocks is None else deployment.blocks[length],
        start_id=deployment.start_id,
    )


def _same(one: PyTree, other: PyTree) -> bool:
    """Whether the two are the same arrays."""
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(ones) == len(others) and all(map(lambda x, y: x is y, ones, others))


def _mesh_of(deployment: Deployment) -> Mesh:
    for leaf in jax.tree.leaves(deployment.params):
        mesh = leaf.sharding.mesh if _is_placed(leaf) else None
        if isinstance(mesh, Mesh):
            return mesh
    if deployment.mesh is not None:
        return deployment.mesh
    return parallel.make_mesh(devices=jax.local_devices()[:1])


def _prepared(deployment: Deployment, mesh: Mesh) -> PyTree:
    """The parameters in the form that evaluations use, on the mesh; what is the same is shared."""
    network = network_of(deployment.encoder)
    return network.prepare(_placed(deployment.params, mesh), deployment.encoder)


def _placed(params: PyTree, mesh: Mesh) -> PyTree:
    """On the mesh; what lies there already stays."""

    def put(leaf: Any) -> Any:
        return leaf if _is_placed(leaf) else jax.device_put(leaf, parallel.replicated(mesh))

    return jax.tree.map(put, params)


def _is_placed(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
