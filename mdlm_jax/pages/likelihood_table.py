"""What `evaluate` prints of a likelihood."""

from collections.abc import Mapping
from typing import Any

from mdlm_jax.evaluation.bounds.rate_curves import BERT_RATE

_NGRAMS = ("unigram", "bigram", "trigram")


def table(told: Mapping[str, Any]) -> str:
    """The figures of `evaluation_SPLIT.json` as lines."""
    exact = told["likelihood"] == "exact"
    draws = "" if exact else f", {told['draws']} draws a row"
    name, masks = "NELBO", f"  +- {told['mc_error']:.3f} (masks)"
    if exact:
        name, masks = "exact", ""
    lines = [
        f"{_subject(told)}: {told['tokens']:,} tokens in {told['rows']:,} rows{draws}",
        f"  {name:<9}{told['nats_per_token']:.3f} nats/token{masks}" + _text_error(told),
    ]
    if told["interval"]:
        low, high = told["interval"]
        lines.append(f"           {low:.3f} to {high:.3f} with 95 % confidence, for such text")
    lines += [
        f"           {told['bits_per_token']:.3f} bits/token, perplexity {told['perplexity']:.1f}",
        f"           {told['bits_per_word']:.2f} bits/word, "
        f"{told['bits_per_character']:.3f} bits/character",
    ]
    if unknown := told.get("unknown_tokens"):
        lines.append(
            f"           {unknown:,} tokens are unknown to the tokenizer: compare with care"
        )
    lines += [f"  {name:<9}{told[name]:.3f} nats/token" for name in _NGRAMS if name in told]
    if "unigram" not in told:
        lines.append("  no n-grams: the training text is not at hand")
    return "\n".join(lines + ([] if exact else _curve(told)))


def _subject(told: Mapping[str, Any]) -> str:
    """The text, and the model."""
    text = f"text of {told['files']}" if "files" in told else f"{told['split']} split"
    model = f"{told['weights']} weights of step {told['step']}" if told["weights"] else ""
    return ", ".join(filter(None, (text, told.get("checkpoint"), model)))


def _text_error(told: Mapping[str, Any]) -> str:
    error = told["text_error"]
    return "" if error is None else f"  +- {error:.3f} (text)"


def _curve(told: Mapping[str, Any]) -> list[str]:
    lines = ["  mask rate    nats per masked token    right   confidence   calibration error"]
    for point in told["rate_curve"]:
        error = "" if point["error"] is None else f" +- {point['error']:.3f}"
        nats = f"{point['nats']:.3f}{error}"
        shares = (
            f"{point['accuracy']:>9.1%}{point['confidence']:>13.1%}"
            f"{point['calibration_error']:>20.1%}"
        )
        mark = "  <- BERT" if point["rate"] == BERT_RATE else ""
        lines.append(f"  {point['rate']:8.0%}     {nats:<20}{shares}{mark}")
    lines.append(f"  {'mean':>8}     {told['rate_curve_trapezoid']:.3f} by the trapezoidal rule")
    return lines
