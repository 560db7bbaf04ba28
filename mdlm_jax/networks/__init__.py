"""Flax networks, each offered as `params -> Denoiser`."""
