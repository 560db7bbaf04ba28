"""A run, its samples and the figures of them joined."""
