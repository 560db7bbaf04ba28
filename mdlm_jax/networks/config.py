"""The config of an encoder: its sizes, and the choices between kinds of transformers."""

import dataclasses

import jax.numpy as jnp

from mdlm_jax.networks.attention import BACKENDS

_CHOICES = {
    "norm_position": ("post", "pre"),
    "norm": ("layernorm", "rmsnorm"),
    "positions": ("learned", "rope"),
    "activation": ("gelu", "gelu_tanh", "silu"),
    "attention": ("full", "causal", "local"),
    "remat": ("none", "dots", "full"),
    "attention_backend": tuple(BACKENDS),
    "token_types": (0, 2),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A bidirectional transformer encoder with a masked-LM head; the defaults are BERT-base.

    `remat`, `scan` and `attention_backend` change how a step is compiled, `dtype` how precisely it
    is computed, and `dropout` and `class_dropout` how it is trained. Every other field is part of
    the meaning of the parameters.

    Attributes:
      vocab_size: number of tokens, `V`.
      mask_id: the `[MASK]` token, in `[0, vocab_size)`.
      max_length: longest row.
      layers: number of blocks.
      width: size of the residual stream, `D`.
      heads: attention heads; they divide `width`.
      mlp_width: hidden size of the MLP (of each of its two halves where `gated`).
      norm_position: 'post' normalises after each residual sum (Vaswani et al. 2017) and after the
        embeddings; 'pre' normalises each branch's input, and the encoder's output.
      norm: 'layernorm' (Ba et al. 2016) or 'rmsnorm' (Zhang and Sennrich 2019).
      embedding_norm: with pre-norm, normalise the embeddings too; the first block's attention then
        takes them without another norm (ModernBERT, Warner et al. 2024).
      positions: 'learned' embeddings, or 'rope': rotations of queries and keys (Su et al. 2021).
      rope_theta: base of the rotations' wavelengths.
      qk_norm: normalise queries and keys per head (Henry et al. 2020; Dehghani et al. 2023).
      gated: gated MLP (Shazeer 2020).
      activation: 'gelu' (exact, by erf), 'gelu_tanh' or 'silu'.
      time_conditioning: adaptive norms that depend on `t` (adaLN, Peebles and Xie 2023).
      classes: number of class labels; 0 for none.
      class_dropout: share of labels that training replaces by "no label" (Ho and Salimans 2022).
      attention: each position sees all ('full'), itself and those before it ('causal'), or those
        at most `window` away on either side ('local').
      window: reach of local attention.
      global_every: n: with local attention, blocks 0, n, 2n, ... see all positions (ModernBERT); 0
        for none.
      global_rope_theta: `rope_theta` of those blocks.
      dropout: rate on the embeddings and on each residual branch. Attention weights are not
        dropped: flash kernels never hold them.
      remat: what the backward pass recomputes: 'none', 'dots' (all but the matrix products with
        the weights) or 'full' (whole blocks).
      scan: compile one block and loop over it, or compile all blocks in line, which is slower to
        compile and often faster to run. The parameters are the same.
      attention_backend: 'xla', 'cudnn' on NVIDIA GPUs, 'splash' on TPUs, or 'auto': the fastest on
        the devices that the step is compiled for.
      token_types: rows of the token-type ("segment A/B") embedding: 2 as in BERT, or 0.
      use_bias: biases in dense layers, in layer norms and on the logits.
      output_bias: a bias on the logits where there are no others.
      norm_eps: added to the variance.
      init_scale: standard deviation of the normal, truncated at two of them, that weights are
        drawn from.
      dtype: 'float32' or 'bfloat16', the type of activations. Parameters, norm statistics, softmax
        and logits are always float32.
      vocab_multiple: embedding rows are padded to a multiple of this, for alignment and sharding.

    Raises:
      ValueError: a field is impossible, alone or with another.
    """

    vocab_size: int = 30522
    mask_id: int = 103
    max_length: int = 512
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    norm_position: str = "post"
    norm: str = "layernorm"
    embedding_norm: bool = False
    positions: str = "learned"
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    gated: bool = False
    activation: str = "gelu"
    time_conditioning: bool = False
    classes: int = 0
    class_dropout: float = 0.0
    attention: str = "full"
    window: int = 0
    global_every: int = 0
    global_rope_theta: float = 10_000.0
    dropout: float = 0.1
    remat: str = "none"
    scan: bool = True
    attention_backend: str = "auto"
    token_types: int = 2
    use_bias: bool = True
    output_bias: bool = False
    norm_eps: float = 1e-12
    init_scale: float = 0.02
    dtype: str = "float32"
    vocab_multiple: int = 1

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            _require(getattr(self, name) in choices, self, name, f"one of {list(choices)}")
        sizes = ("vocab_size", "max_length", "layers", "width", "heads", "mlp_width")
        for name in (*sizes, "vocab_multiple"):
            _require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("dropout", "class_dropout"):
            _require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        for name in ("norm_eps", "init_scale", "rope_theta", "global_rope_theta"):
            _require(getattr(self, name) > 0, self, name, "positive")
        in_vocabulary = 0 <= self.mask_id < self.vocab_size
        _require(in_vocabulary, self, "mask_id", f"in [0, vocab_size={self.vocab_size})")
        _require(self.width % self.heads == 0, self, "heads", f"a divisor of width={self.width}")
        if self.positions == "rope":
            even = self.head_dim % 2 == 0
            _require(even, self, "positions", f"'learned' where width/heads={self.head_dim} is odd")
        _require(self.classes >= 0, self, "classes", "0 (none) or more")
        if self.classes == 0:
            _require(self.class_dropout == 0, self, "class_dropout", "0 where classes=0")
        if self.attention == "local":
            _require(self.window >= 1, self, "window", "at least 1 where attention='local'")
        else:
            for name in ("window", "global_every"):
                of_local = getattr(self, name) == 0
                _require(of_local, self, name, f"0 where attention={self.attention!r}")
        _require(self.global_every >= 0, self, "global_every", "0 (none) or more")
        if self.global_every:
            lifts = self.attention_backend != "splash"
            _require(lifts, self, "attention_backend", "another where global_every is not 0")
        if self.norm_position == "post":
            accepted = "False where norm_position='post', which has that norm always"
            _require(not self.embedding_norm, self, "embedding_norm", accepted)
        if self.use_bias:
            _require(not self.output_bias, self, "output_bias", "False where use_bias=True")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as a dtype."""
        return jnp.dtype(self.dtype)


def _require(holds: bool, config: Config, name: str, accepted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: must be {accepted}")
