"""What a program costs, without the chips: ahead-of-time compiling, topologies, HLO, FLOPs."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
