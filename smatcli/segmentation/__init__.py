"""Segmentation: networks, masks, augmentation and measures."""
