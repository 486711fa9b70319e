"""Datasets of the papers: what they should hold, and which are here."""
