"""An analysis on disk: `RUN/analysis/<name>.h5` with its settings, and its tables as CSV beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.errors import UserError
from smatcli.safe.files import atomic_path, atomic_write_text
from smatcli.safe.seal import seal
from smatcli.safe.text import parse_json, write_csv

FORMAT = 1
FOLDER = "analysis"
SMALL = 16384  # bytes up to which an array is not compressed

Arrays = dict[str, np.ndarray]


@dataclass
class Analysis:
    """Arrays by group (a dataset, or `all`), and attributes of each group; `tables` by file suffix, "" for the main one.

    `name` is the file's stem and starts with `kind`; files with equal `settings` are the same analysis.
    """

    kind: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Arrays] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def texts(values: Sequence[str]) -> np.ndarray:
    """Return names as an array that HDF5 stores as UTF-8."""
    return np.array([str(v) for v in values], dtype=object)


def write_analysis(folder: Path, analysis: Analysis) -> Path:
    """Write an analysis into `folder`, each file atomically, and return the HDF5 file."""
    import h5py

    path = folder / f"{analysis.name}.h5"
    for end, lines in analysis.tables.items():
        atomic_write_text(folder / f"{analysis.name}{end and '-'}{end}.csv", write_csv(lines))
    with atomic_path(path) as draft, h5py.File(draft, "w") as file:
        file.attrs.update(
            {"format": FORMAT, "kind": analysis.kind, "settings": json.dumps(analysis.settings, sort_keys=True), **analysis.facts}
        )
        for name, arrays in analysis.groups.items():
            group = file.create_group(name)
            group.attrs.update(analysis.attributes.get(name, {}))
            for key, values in arrays.items():
                options: Mapping[str, Any] = {"dtype": h5py.string_dtype()} if values.dtype == object else {}
                if values.nbytes > SMALL and values.dtype != object:
                    options = {"compression": "gzip"}
                group.create_dataset(key, data=values, **options)
        file.close()
        seal(draft)
    return path


def read_analysis(path: Path) -> Analysis:
    """Read an analysis, without its tables. Raises UserError for a file that is damaged, not an analysis, or of another version."""
    from smatcli.safe import hdf5 as safe_hdf5

    try:
        with safe_hdf5.opened(path) as file:
            facts = safe_hdf5.attributes(file)
            if int(facts.pop("format")) != FORMAT:
                raise UserError(f"{path}: was written by another version of smat; analyse the run again")
            kind, settings = str(facts.pop("kind")), parse_json(facts.pop("settings"))
            if not isinstance(settings, dict):
                raise ValueError("its settings are not a JSON object")
            groups = {name: safe_hdf5.arrays(group) for name, group in safe_hdf5.groups(file)}
            attributes = {name: safe_hdf5.attributes(group) for name, group in safe_hdf5.groups(file)}
    except safe_hdf5.WRONG as error:
        why = safe_hdf5.reason(error)
        raise UserError(f"{path}: cannot be read as an analysis ({why}); move it away and analyse the run again") from None
    return Analysis(kind, path.stem, settings, groups, attributes, {}, facts)


def known_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings of the analysis at `path`: None if it does not exist, empty if it cannot be read."""
    if not path.exists():
        return None
    try:
        return read_analysis(path).settings
    except UserError:
        return {}
