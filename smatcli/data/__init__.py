"""Stores of images, where they come from, and the episodes that are drawn from them. Knows no method."""
