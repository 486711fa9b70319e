"""A store is compared with its content hash before it is used."""

from pathlib import Path

import numpy as np
import pytest

from smatcli.data.stores import opening as trust
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.store import Store, write_store
from smatcli.errors import UserError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SMAT_TRUST_STORES", raising=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    return Store.open(write_store(tmp_path / "a.h5", "a", 8, [(f"c{i}", i, images[i]) for i in range(2)]))


def flip(store: Store) -> None:
    data = bytearray(store.path.read_bytes())
    data[store.offset + 7] ^= 1
    store.path.write_bytes(data)


def test_one_bit_of_one_image_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    open_stores(store.path.parent, ["a"])
    flip(store)
    with pytest.raises(UserError, match=r"a\.h5: damaged: the content hash is .*; prepare it again"):
        open_stores(store.path.parent, ["a"])
    monkeypatch.setenv("SMAT_TRUST_STORES", "1")
    open_stores(store.path.parent, ["a"])


def test_a_large_store_is_read_once_until_it_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "LARGE", 100)
    said: list[str] = []
    for _ in range(2):
        trust.verify_once({"a": store}, said.append)
    assert len(said) == 1
    assert "checking its content, once" in said[0]
    flip(store)
    with pytest.raises(UserError, match="damaged"):
        trust.verify_once({"a": store}, said.append)
    assert len(said) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": 1}'])
def test_a_damaged_cache_costs_time_and_no_more(store: Store, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(trust, "LARGE", 100)
    cache = trust._cache()
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    said: list[str] = []
    for _ in range(2):
        trust.verify_once({"a": store}, said.append)
    assert len(said) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.path))  # a file: it cannot be written
    trust.verify_once({"a": store}, said.append)
    assert len(said) == 2
