"""From documents to tokens, and back."""
