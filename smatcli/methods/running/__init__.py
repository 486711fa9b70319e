"""Run a network fast and in little memory: compilation, recomputation, late views, shared gradients, cached features."""
