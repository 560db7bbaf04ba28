"""Logits of the positions that are needed, and what is drawn there.

| module | what it holds |
|---|---|
| `slots` | what is lost at some positions, never `[B, L, V]` |
| `readouts` | tokens drawn where they are asked for |
| `draws` | from logits to drawn tokens and their scores |
| `cuts` | what shapes logits: temperature, nuclei, penalties |
| `reductions` | the maximum and the log-sum-exp of logits |
"""
