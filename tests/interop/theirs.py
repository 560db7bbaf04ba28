"""Tiny models of transformers with random weights, and what PyTorch computes of them.

    python tests/interop/theirs.py FOLDER_OF_MINILM

writes the golden files: the checkpoints, and in expected.npz the outputs on the inputs below.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden"
MASK = 7
# The mask is not where BERT has it, and there is no spare token.
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "[MASK]", "the", "cat", "sat", "##s"),
    *("on", "mat", "dog", "ran", ".", ",", "##ly"),
]

ROWS, LENGTH, PAD = 2, 8, 1
TOKENS = np.random.default_rng(0).integers(2, len(WORDS), (ROWS, LENGTH)).astype(np.int32)
VALID = np.arange(LENGTH) < np.array([[5], [LENGTH]])
TOKENS[~VALID] = PAD  # RoBERTa tells its padding by it
TYPES = np.tile(np.arange(LENGTH) // 3 % 2, (ROWS, 1)).astype(np.int32)
SENTENCES = (
    "A denoiser is a function, and BERT is one.",
    "The network that removes noise maps tokens to tokens.",
    "It rained in Lisbon all of Tuesday.",
)

_BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
_MODERN = {
    "num_hidden_layers": 4,  # the first and the last see all, the two between them their neighbours
    "local_attention": 4,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
}
_BIAS_KEYS = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
BIASES = dict.fromkeys(_BIAS_KEYS, True)
_DISTIL = {
    "vocab_size": len(WORDS),
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 12,
}


def bert(kind=transformers.BertForMaskedLM, **changes):
    return drawn(kind(transformers.BertConfig(**{**_BERT, **changes})))


def roberta(kind=transformers.RobertaForMaskedLM, **changes):
    fields = {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": PAD}
    return drawn(kind(transformers.RobertaConfig(**{**fields, **changes})))


def distilbert(kind=transformers.DistilBertForMaskedLM, **changes):
    return drawn(kind(transformers.DistilBertConfig(**{**_DISTIL, **changes})))


def modernbert(kind=transformers.ModernBertForMaskedLM, **changes):
    fields = {**_BERT, **_MODERN, **changes}
    return drawn(kind(transformers.ModernBertConfig(**fields)))


FAMILIES = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "modernbert": modernbert}


def drawn(model):
    """The model, all its weights random: scales, biases and the padding's row too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            center = float(x.ndim == 1 and name.endswith("weight"))  # of a norm
            x.copy_(center + 0.2 * torch.randn(x.shape, generator=generator))
    return model.eval()


def outputs(model, **options):
    """Last hidden states and logits (None without a head) of the inputs, as float32 arrays."""
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(TOKENS).long(),
            attention_mask=torch.tensor(VALID).long(),
            output_hidden_states=True,
            **{name: torch.tensor(x).long() for name, x in options.items()},
        )
    logits = getattr(out, "logits", getattr(out, "prediction_logits", None))
    return out.hidden_states[-1].numpy(), None if logits is None else logits.numpy()


def write_vocabulary(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")


def sentence_embeddings(folder):
    """As sentence-transformers makes them: mean over the tokens, then unit length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean).numpy()


def write_golden(minilm):
    expected = {"tokens": TOKENS, "valid": VALID, "types": TYPES, "sentences": np.array(SENTENCES)}
    for name, make in FAMILIES.items():
        model = make()
        model.save_pretrained(GOLDEN / name)
        if name != "roberta":
            write_vocabulary(GOLDEN / name)
        options = {"token_type_ids": TYPES} if name == "bert" else {}
        hidden, logits = outputs(model, **options)
        expected |= {f"{name}_hidden": hidden, f"{name}_logits": logits}
    expected["embeddings"] = sentence_embeddings(minilm)
    np.savez_compressed(GOLDEN / "expected.npz", **expected)
    for path in GOLDEN.glob("*/generation_config.json"):
        path.unlink()
    print(json.dumps({str(p.relative_to(GOLDEN)): p.stat().st_size for p in GOLDEN.rglob("*.*")}))


if __name__ == "__main__":
    write_golden(sys.argv[1])
