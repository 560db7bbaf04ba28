"""Run by test_splash.py in a process of its own with four virtual devices; prints what holds."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import Mask, attention
from mdlm_jax.networks.attention.splash import splash_attention


def main():
    mesh = parallel.make_mesh(data=2, tensor=2)
    qkv = np.random.default_rng(0).standard_normal((3, 4, 40, 2, 8), np.float32)
    valid = np.arange(40) < np.array([40, 20, 10, 30])[:, None]
    placed = jax.NamedSharding(mesh, jax.P(None, parallel.ROW_AXES, None, "tensor"))

    @jax.jit
    def kernel(qkv, valid):
        with parallel.use(mesh):
            return splash_attention(*qkv, valid=valid, interpret=True)

    def compare(qkv, valid, out):
        expected = attention(*qkv, Mask(valid=valid), backend="xla")
        np.testing.assert_allclose(
            *(jnp.where(valid[..., None, None], x, 0) for x in (out, expected)), atol=2e-6
        )

    out = kernel(jax.device_put(qkv, placed), valid)
    assert out.addressable_shards[0].data.shape == (2, 40, 1, 8), out.sharding
    compare(qkv, valid, jax.device_get(out))
    print("rows-and-heads")

    # One row does not split over the mesh: every device has it.
    everywhere = jax.device_put(qkv[:, :1], parallel.replicated(mesh))
    compare(qkv[:, :1], valid[:1], jax.device_get(kernel(everywhere, valid[:1])))
    print("one-row")


if __name__ == "__main__":
    main()
