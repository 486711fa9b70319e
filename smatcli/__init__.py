"""Sparse meta-tuning of vision transformers for few-shot learning."""

__version__ = "0.1.0"
