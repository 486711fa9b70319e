"""Randomly changed files are read or raise SmatError: no other exception, no hang, no excessive memory.

Seeds are fixed, so that every run tests the same; `python -m tests.fuzz.long` tries others for a given time.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Bench

# Attempts per target, depending on the cost of an attempt.
BUDGET = {"official": 10, "weights": 10, "run": 8, "classifier": 25, "images": 8, "pmf": 25, "store": 25, "tuning-lists": 20}
USUAL = 40
# Seeds that once caused an exception other than SmatError, a hang or a crash.
FOUND = {
    "quickdraw": (1963173279855793430, 8455875857354387532),
    "archive": (4064494096350945498,),
    "weights": (20834215930263835,),
}


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_refused_or_read(name, tmp_path_factory):
    bench = Bench(name, tmp_path_factory.mktemp("fuzz") / "work")
    for seed in FOUND.get(name, ()):
        bench.attempt(seed)

    @settings(max_examples=BUDGET.get(name, USUAL), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    def attempt(seed):
        bench.attempt(seed)

    attempt()
