"""Fits without a learning rate: Newton's method, Laplace's approximation, and the deterministic
ELBO.
"""
