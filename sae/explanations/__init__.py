"""Explanations of latents in words, and scores of them.

Explainers (explainers.py) read where a latent fires in the training text, scorers (scores.py) where
it fires in the test text. A place is a position of a context, counted over all contexts.
"""
