"""The training loop and what belongs to it. Start with loop.py and learner.py."""
