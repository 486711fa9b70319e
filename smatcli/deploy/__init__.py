"""What a trained run is used for: classifying images, saved classifiers, exports, the model hub."""
