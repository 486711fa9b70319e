"""The commands that compute, one folder per command, and the training loop that they share."""
