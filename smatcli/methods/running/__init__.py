"""Fast execution in little memory: compilation, recomputation, lazy views, graphs cut at the merge, cached features."""
