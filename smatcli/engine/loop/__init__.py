"""The training loop and its parts. Start with loop.py and learner.py."""
