import math

import pytest

from mdlm_jax.pods import topologies


@pytest.mark.parametrize(
    "name, chips, accelerator_type",
    [
        ("v4:2x2x1", 4, "v4-8"),
        ("v4:4x4x12", 192, "v4-384"),
        ("v5e:1x1", 1, "v5litepod-1"),
        ("v5e:16x16", 256, "v5litepod-256"),
        ("v5p:2x2x4", 16, "v5p-32"),
        ("v5p:4x4x8", 128, "v5p-256"),
        ("v5p:16x16x24", 6144, "v5p-12288"),
        ("v6e:2x4", 8, "v6e-8"),
    ],
)
def test_a_slice_and_what_gcloud_calls_it(name, chips, accelerator_type):
    topology = topologies.parse(name)
    assert (topology.name, topology.chips) == (name, chips)
    assert topology.accelerator_type == accelerator_type


def test_slices_multiply():
    assert topologies.parse("v5e:4x4", slices=3).chips == 48


@pytest.mark.parametrize(
    "name, told",
    [
        ("v5e:32x32", "slices of v5e are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:4x2", "slices of v5e are"),
        ("v6e:16x16x1", "slices of v6e are"),
        ("v5p:16x16", "slices of v5p are 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, and AxBxC of"),
        ("v4:8x4x4", "A <= B <= C"),
        ("v4:4x4x6", "multiples of 4"),
        ("v4:16x16x24", "at most 4096 chips"),
        ("v5p:4x4x28", "C <= 24 and at most 6144 chips"),
        ("v5e", "slices of v5e are"),
        ("v3:2x2", "must be a generation and a shape, such as v4:"),
        ("", "must be a generation and a shape"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(name, told):
    with pytest.raises(ValueError, match=told) as error:
        topologies.parse(name)
    assert "\n" not in str(error.value)
    assert repr(name) in str(error.value)


def test_slices_must_be_some():
    with pytest.raises(ValueError, match="slices must be at least 1, not 0"):
        topologies.parse("v5e:4x4", slices=0)


@pytest.mark.parametrize("generation", topologies.CHIPS)
def test_the_smaller_the_slice_the_earlier_it_is_listed(generation):
    sizes = [math.prod(shape) for shape in topologies.CHIPS[generation].shapes if 4 in shape]
    assert sizes[0] == min(sizes)
    assert len(set(topologies.CHIPS[generation].shapes)) == len(topologies.CHIPS[generation].shapes)
