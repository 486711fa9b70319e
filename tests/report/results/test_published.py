"""Published numbers are read with their source, shown next to ours and subtracted, but excluded from averages, ranks and tests."""

import math
from pathlib import Path

import pytest

from smatcli.errors import UserError
from smatcli.report.results.frame import read
from smatcli.report.results.groups import make_groups
from smatcli.report.results.published import FOLDER, choose, papers, read_published
from smatcli.report.tables.contents import TableOptions, all_tables, unmatched
from smatcli.report.tables.ours import main_table
from tests.report.fakes import add_eval, draw, make_run

HEAD = "table,label,method,adapt,dataset,domain,mean,half_width,source\n"
NAMES = ("aircraft", "omniglot", "traffic_sign")


def study(root: Path):
    add_eval(make_run(root / "pretrained", "pretrained"), "proto", draw(0, 0, names=NAMES), "pretrained")
    run = make_run(root / "pmf", "pmf")
    add_eval(run, "proto", draw(0.02, 0.02, names=NAMES), "pmf")
    add_eval(run, "full-steps20", draw(0.05, 0.05, names=NAMES), "pmf")
    (group,) = make_groups(read([root]), {})
    return group


def test_every_shipped_number_has_a_source():
    assert papers() == ["meta_dataset", "mlae", "pmf", "pmoe", "smat"]
    for name in papers():
        columns, remarks = read_published(FOLDER / f"{name}.csv")
        assert remarks
        assert all(c.source and c.table for c in columns)
        assert columns or "Missing" in " ".join(remarks)


def test_shown_beside_ours(tmp_path: Path):
    group = study(tmp_path)
    columns, lines = choose(["pmf:PMF + fine-tuning (all)", "pmoe"])
    assert len(columns) == 1
    assert len(lines) == 1
    assert "no numbers in pmoe.csv yet" in lines[0]
    assert "Missing" in lines[0]
    table, alone = main_table(group, published=columns), main_table(group)
    assert table.heads == [*alone.heads, "PMF + fine-tuning (all) [pmf]"]
    assert table.families[-1] == ("Published", 1)
    rows = {row.label: row.cells for block in table.blocks for row in block.rows}
    # README of the repository hushell/pmf_cvpr22
    assert (rows["aircraft"][-1].estimate.mean, rows["aircraft"][-1].estimate.half_width) == pytest.approx((0.8949, 0.0052))
    # traffic_sign is no name that the fakes call out-of-domain
    average = rows["In-domain average"][-1].estimate
    assert average.mean == pytest.approx((0.8949 + 0.9217 + 0.8985) / 3)
    assert average.half_width == pytest.approx(math.hypot(0.0052, 0.0057, 0.0076) / 3)
    assert rows["Average rank"][-1].text == ""
    assert not any(cells[-1].bold for cells in rows.values())
    ours = {row.label: row.cells for block in alone.blocks for row in block.rows}
    assert all(rows[label][: len(alone.heads)] == cells for label, cells in ours.items())
    assert any("hushell/pmf_cvpr22" in note and "not measured here" in note for note in table.notes)


def test_subtracted_where_method_and_adaptation_agree(tmp_path: Path):
    group = study(tmp_path)
    columns, _ = choose(["pmf", "meta_dataset:URL (all)"])
    options = TableOptions(published=columns, delta=True)
    tables = all_tables([group], {group.tag: []}, options)
    (delta,) = [t for t in tables if t.stem.startswith("delta-")]
    assert delta.heads == ["PMF + full-steps20 − PMF + fine-tuning (all) [pmf]"]
    found = delta.blocks[0].rows[0].cells[0].estimate
    ours = next(c for c in group.columns if c.evaluation.adapt != "proto").estimates[group.keys("ID")[0]]
    assert found.mean == pytest.approx(ours.mean - 0.8949)
    assert found.half_width == pytest.approx(math.hypot(ours.half_width, 0.0052))
    assert unmatched([group], options, tables) == []
    other = TableOptions(published=choose(["mlae"])[0], delta=True)
    assert [line.split(":")[0] for line in unmatched([group], other, [])] == ["--published mlae", "--delta"]


def test_wrong_names_and_files(tmp_path: Path):
    with pytest.raises(UserError, match=r"--published pmff: no such paper.*did you mean 'pmf'"):
        choose(["pmff"])
    with pytest.raises(UserError, match="has no column 'URLL'"):
        choose(["meta_dataset:URLL"])
    own = tmp_path / "own.csv"
    for text, message in [
        ("a,b\n", "lacks the columns"),
        (HEAD + "Table 1,A,,,x,ID,101,,s\n", "line 2: 101 is not an accuracy"),
        (HEAD + "Table 1,A,,,x,ID,many,,s\n", "not a number in percent"),
        (HEAD + "Table 1,A,,,x,ID,50,,\n", "each number needs"),
        (HEAD + "Table 1,A,,,x,ID,50,,s\nTable 1,A,,,x,ID,51,,s\n", "twice"),
    ]:
        own.write_text(text)
        with pytest.raises(UserError, match=message):
            choose([str(own)])
    own.write_text("# remark\n" + HEAD + "Table 1,A,smat,proto,x,ID,50,,s\n")
    (column,), _ = choose([str(own)])
    assert column.estimates["x"].mean == 0.5
    assert math.isnan(column.estimates["x"].half_width)
    assert column.heading == "A [own]"
