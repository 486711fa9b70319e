"""Read, group and compare the results of runs."""
