"""Figures of likelihoods."""
