"""How well the query set is classified while an adaptation trains."""

import time

import numpy as np

from smatcli.seams import Classifier, Episode


class Trajectory:
    """Query accuracies (shares) of an episode, of every classifier that it is called with: what an adaptation shows, and never hears of."""

    def __init__(self, episode: Episode) -> None:
        self.episode, self.shares, self.seconds = episode, list[float](), 0.0

    def __call__(self, classifier: Classifier) -> None:
        begun = time.perf_counter()
        right = classifier.predict(self.episode.query_images).argmax(1) == self.episode.query_labels
        self.shares.append(float(right.double().mean()))
        self.seconds += time.perf_counter() - begun

    def padded(self, steps: int) -> np.ndarray:
        """[1 + steps] float32, from before the first step to after the last; where fewer were taken, nothing changed after them."""
        return np.array(self.shares + self.shares[-1:] * (1 + steps - len(self.shares)), np.float32)
