from collections.abc import Iterator

import pytest

from tests.faults.children import Children


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Start one fork server for all tests of this folder."""
    made = Children()
    yield made
    made.close()
