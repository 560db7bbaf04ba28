import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mdlm_jax.host import parallel


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
    batch = {"tokens": np.arange(12, dtype=np.int32).reshape(4, 3), "weights": np.ones(4)}
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    placed = parallel.put_batch(batch, mesh, 4)
    assert placed["tokens"].sharding == parallel.batch_sharding(mesh)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])


def test_a_batch_of_another_number_of_rows_is_refused():
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"batch\['x'\] has 3 rows, this process holds 4 of 4"):
        parallel.put_batch({"x": np.zeros((3, 2))}, mesh, 4)


def test_parameters_that_fsdp_would_not_split_are_refused():
    mesh = jax.sharding.AbstractMesh((1, 4, 1), parallel.AXES)
    axes = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}

    def check(width):
        shapes = {"kernel": shape(width, 64), "bias": shape(64)}
        parallel.require_sharded(mesh, parallel.shardings(mesh, axes, shapes), shapes)

    check(64)  # the bias is a 65th of all
    with pytest.raises(ValueError, match=r"fsdp=4: 100.0% .* first kernel of shape \(66, 64\)"):
        check(66)


def test_without_a_mesh_in_use_arrays_stay_as_they_are():
    x = np.ones((4, 2), np.float32)
    assert parallel.spread_rows(x) is x
    assert parallel.gather_parameter(x, ("vocab", "embed")) is x
    assert not parallel.splits_layers()


def test_rows_that_do_not_split_are_left_to_the_compiler():
    mesh = jax.sharding.AbstractMesh((2, 2, 1), parallel.AXES)
    x = np.ones((6, 2), np.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        assert parallel.spread_rows(x) is x
