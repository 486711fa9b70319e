"""Many runs: sweeps, suites, local processes and Slurm jobs."""
