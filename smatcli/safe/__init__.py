"""Bounded readers of files from strangers, and atomic writers."""
