"""Likelihood reports, generation metrics and the page that shows a run."""
