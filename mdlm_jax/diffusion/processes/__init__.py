"""What is masked: exact counts, Bernoulli masks, BERT's rate, causal rows, kept prompts."""
