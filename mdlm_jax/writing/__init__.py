"""Text in and out of a sampler: prompts, decoding, filling, answering, sample files."""
