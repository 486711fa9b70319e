"""Segmentation: networks, masks, augmentation and metrics."""
