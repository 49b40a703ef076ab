"""Bundles: a trained model with its evidence, written, verified, answered from and registered."""
