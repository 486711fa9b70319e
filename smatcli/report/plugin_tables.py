"""Tables that other packages add to every report, by an entry point in the group `smatcli.tables`."""

import logging
from collections.abc import Iterator

from smatcli import plugins
from smatcli.report.groups import Group
from smatcli.report.tables import Table


def plugin_tables(group: Group, digits: int) -> Iterator[Table]:
    """The tables of a group that installed plugins make; one that fails is named in a line of the log and left out."""
    for name, plugin in plugins.loaded("tables").items():
        try:
            made = plugin.made(group, digits)
            if made is not None and not isinstance(made, Table):
                raise TypeError(f"makes a {type(made).__name__}, not a smatcli.report.tables.Table")
        except Exception as error:  # the code of others may raise anything
            logging.getLogger("smatcli").warning(f"plugin tables.{name} failed on {group.tag}: {type(error).__name__}: {error}; left out")
            continue
        if made is not None:
            yield made
