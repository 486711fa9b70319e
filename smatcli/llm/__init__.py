"""SIMoE: sparse interpolated experts inside a causal language model (Chen, Wei and Schwarz, ACL 2025)."""
