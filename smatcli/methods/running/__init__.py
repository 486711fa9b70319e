"""Fast execution that saves memory: compilation, recomputation, lazy views, graphs cut at the merge, cached features."""
