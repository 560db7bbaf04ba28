import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mdlm_jax import parallel


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def test_mesh_takes_all_devices_and_is_auto():
    mesh = parallel.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 3}, {"data": 0}, {"data": -2}, {"fsdp": -1}, {"data": 1, "tensor": 2}],
)
def test_impossible_meshes_are_refused_in_one_line(sizes):
    with pytest.raises(ValueError, match="mesh data=") as error:
        parallel.make_mesh(**sizes, devices=jax.devices()[:1])
    assert "\n" not in str(error.value)


def specs(sizes, axes, shapes):
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    return jax.tree.map(lambda s: s.spec, parallel.shardings(mesh, axes, shapes))


def test_rules_place_what_divides():
    sizes = {"data": 1, "fsdp": 2, "tensor": 4}
    axes = {
        "embedding": ("vocab", "embed"),
        "mlp": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
        "square": ("embed", "embed"),
        "odd": ("vocab", "embed"),
        "positions": ("positions", None),
        "unnamed": None,
        "unknown": ("colour",),
    }
    shapes = {
        "embedding": shape(16, 8),
        "mlp": {"kernel": shape(2, 8, 12), "bias": shape(2, 12)},
        "square": shape(8, 8),
        "odd": shape(15, 8),
        "positions": shape(8, 8),
        "unnamed": shape(8, 8),
        "unknown": shape(8),
    }
    assert specs(sizes, axes, shapes) == {
        "embedding": P("tensor", "fsdp"),
        "mlp": {"kernel": P(None, "fsdp", "tensor"), "bias": P(None, "tensor")},
        "square": P("fsdp", None),
        "odd": P(None, "fsdp"),
        "positions": P(None, None),
        "unnamed": P(None, None),
        "unknown": P(None),
    }


def test_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match=r"\['a'\]\['kernel'\] has shape \(4, 4\)"):
        parallel.shardings(
            parallel.make_mesh(), {"a": {"kernel": ("embed",)}}, {"a": {"kernel": shape(4, 4)}}
        )


def test_put_batch_keeps_the_rows():
    batch = {"tokens": np.arange(12, dtype=np.int32).reshape(4, 3), "weights": np.ones(2)}
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    placed = parallel.put_batch(batch, mesh)
    assert placed["tokens"].sharding == parallel.batch_sharding(mesh)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
