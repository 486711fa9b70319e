"""Results of runs, read, grouped and compared."""
