"""Imports from version 0.1 fail with the name of the new module."""

import importlib
import re
from importlib.util import find_spec

import pytest

from smatcli.moved import table

ROWS = sorted(table().items())


@pytest.mark.parametrize(("old", "new"), ROWS)
def test_the_new_module_exists(old, new):
    assert all(find_spec(name) for name in new.split(", "))


@pytest.mark.parametrize(("old", "new"), ROWS)
def test_the_old_one_names_it(old, new):
    with pytest.raises(ImportError, match=re.escape(new)):
        __import__(old, fromlist=["something_of_version_0_1"])


def test_other_names_fail_as_usual():
    import smatcli.engine.train as package

    assert not hasattr(package, "_private")
    assert not hasattr(package, "__wrapped__")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'smatcli\.engine\.nothing'"):
        importlib.import_module("smatcli.engine.nothing")
