"""Which classes and images an episode holds, and how its images are loaded."""
