"""What is masked.

| module | what it holds |
|---|---|
| `masks` | which tokens of a row are masked: exact counts, and Bernoulli masks |
| `corruption` | a corrupted batch: canvas, positions, targets, weights; BERT's too |
| `causal` | the autoregressive baseline: rows that predict each token from those before it |
| `keeping` | prompts: tokens that are never masked |
"""
