"""Use of trained runs: classify images, save classifiers, export models, and share runs on a model hub."""
