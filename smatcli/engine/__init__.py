"""The verbs that compute, one folder per verb."""
