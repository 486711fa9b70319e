"""Instruction data: rows of text, their tokens, packing, and generated tasks."""
