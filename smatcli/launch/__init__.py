"""Launch many runs: sweeps and suites, as local processes or Slurm jobs."""
