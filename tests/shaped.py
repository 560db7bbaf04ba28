"""Many denoisers in one, a row to each: one program draws from all of them."""

import jax.numpy as jnp

from mdlm_jax import Denoiser, Hidden


def one_a_row(denoisers, which):
    """Row b is of `denoisers[which[b]]`, in its readout as in its shape."""
    numbers = range(len(denoisers))

    def encode(tokens, t):
        all_of_them = [denoiser.encode(tokens, t) for denoiser in denoisers]
        at, row = zip(*all_of_them, strict=True)
        return Hidden(at, (which, row))

    def of_row(results, row):  # [D][N, V] -> [N, V]
        return jnp.stack(results)[row[0], jnp.arange(len(row[0]))]

    def readout(at, row):
        return of_row([denoisers[i].readout(at[i], row[1][i]) for i in numbers], row)

    def shape(logits, row):
        return of_row([denoisers[i].shape(logits, row[1][i]) for i in numbers], row)

    return Denoiser(encode, readout, shape)
