"""Read Meta-Dataset's records, specifications and class graphs without TensorFlow."""
