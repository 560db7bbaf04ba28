"""What `evaluate` prints of a likelihood."""

from collections.abc import Mapping
from typing import Any

from mdlm_jax.evaluation.bounds.rate_curves import BERT_RATE

_NGRAMS = ("unigram", "bigram", "trigram")


def table(figures: Mapping[str, Any]) -> str:
    """The contents of `evaluation_SPLIT.json` as lines."""
    exact = figures["likelihood"] == "exact"
    draws = "" if exact else f", {figures['draws']} draws a row"
    name, masks = "NELBO", f"  +- {figures['mc_error']:.3f} (masks)"
    if exact:
        name, masks = "exact", ""
    lines = [
        f"{_subject(figures)}: {figures['tokens']:,} tokens in {figures['rows']:,} rows{draws}"
        + _blocks(figures),
        f"  {name:<9}{figures['nats_per_token']:.3f} nats/token{masks}" + _text_error(figures),
    ]
    if figures["interval"]:
        low, high = figures["interval"]
        lines.append(f"           {low:.3f} to {high:.3f} with 95 % confidence, for such text")
    lines += [
        f"           {figures['bits_per_token']:.3f} bits/token, "
        f"perplexity {figures['perplexity']:.1f}",
        f"           {figures['bits_per_word']:.2f} bits/word, "
        f"{figures['bits_per_character']:.3f} bits/character",
    ]
    if unknown := figures.get("unknown_tokens"):
        lines.append(
            f"           {unknown:,} tokens are unknown to the tokenizer: compare with care"
        )
    lines += [f"  {name:<9}{figures[name]:.3f} nats/token" for name in _NGRAMS if name in figures]
    if "unigram" not in figures:
        lines.append("  no n-grams: the training text is not available")
    return "\n".join(lines + ([] if exact else _curve(figures)))


def _subject(figures: Mapping[str, Any]) -> str:
    """The text, and the model."""
    text = f"text of {figures['files']}" if "files" in figures else f"{figures['split']} split"
    model = f"{figures['weights']} weights of step {figures['step']}" if figures["weights"] else ""
    return ", ".join(filter(None, (text, figures.get("checkpoint"), model)))


def _blocks(figures: Mapping[str, Any]) -> str:
    size = figures.get("block_size")
    return "" if size is None else f", in blocks of {size:,}"


def _text_error(figures: Mapping[str, Any]) -> str:
    error = figures["text_error"]
    return "" if error is None else f"  +- {error:.3f} (text)"


def _curve(figures: Mapping[str, Any]) -> list[str]:
    lines = ["  mask rate    nats per masked token    right   confidence   calibration error"]
    for point in figures["rate_curve"]:
        error = "" if point["error"] is None else f" +- {point['error']:.3f}"
        nats = f"{point['nats']:.3f}{error}"
        shares = (
            f"{point['accuracy']:>9.1%}{point['confidence']:>13.1%}"
            f"{point['calibration_error']:>20.1%}"
        )
        mark = "  <- BERT" if point["rate"] == BERT_RATE else ""
        lines.append(f"  {point['rate']:8.0%}     {nats:<20}{shares}{mark}")
    how = "by the trapezoidal rule" if "block_size" not in figures else "over all counts of masks"
    lines.append(f"  {'mean':>8}     {figures['rate_curve_trapezoid']:.3f} {how}")
    return lines
