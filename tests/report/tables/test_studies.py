"""Footnotes, ablation grid, fine-tuning strategies, significance, parameters and cost."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from scipy import stats

from smatcli.report.results.frame import read
from smatcli.report.results.groups import ResultGroup, make_groups
from smatcli.report.tables.costs import cost_table, parameter_table, size_of, tensor_shapes
from smatcli.report.tables.ours import gains_table, main_table, pairs_table
from smatcli.report.tables.studies import ablation_table, significance_tables, strategies_table
from tests.report.fakes import accuracies, add_eval, draw, make_run, set_columns

NAMES = ("aircraft", "omniglot", "coco_crops")


def recipe(run: Path, section: str, **values: object) -> None:
    found = yaml.safe_load((run / "recipe.yaml").read_text())
    found.setdefault(section, {}).update(values)
    (run / "recipe.yaml").write_text(yaml.safe_dump(found))


def pair(root: Path) -> tuple[Path, Path]:
    a = add_eval(make_run(root / "a", "pretrained"), "proto", draw(0, 0, names=NAMES), "pretrained")
    return a, add_eval(make_run(root / "b", "pmf"), "proto", draw(0.03, 0.01, names=NAMES), "pmf")


def notes(root: Path) -> list[str]:
    (group,) = make_groups(read([root]), {})
    return main_table(group).notes


def test_nothing_to_say_of_equals(tmp_path: Path):
    for folder in pair(tmp_path):
        set_columns(folder, list_hash="abc", search="valid", lr=0.01)
        recipe(folder.parents[1], "backbone", name="vit", image_size=128)
    assert notes(tmp_path) == []


def test_other_episodes(tmp_path: Path):
    a, b = pair(tmp_path)
    set_columns(a, list_hash="abc")
    set_columns(b, list_hash="abd")
    assert notes(tmp_path) == [
        "Different episodes: PMF had different episodes from Pre-trained on every dataset; such differences are not paired."
    ]
    (group,) = make_groups(read([tmp_path]), {})
    assert "paired by episode where" in main_table(group).caption
    assert significance_tables(group) == []


def test_other_image_size_and_backbone(tmp_path: Path):
    for folder, size in zip(pair(tmp_path), (128, 224), strict=True):
        recipe(folder.parents[1], "backbone", name="vit", image_size=size)
    assert notes(tmp_path) == ["Image size differs: 128 px for Pre-trained; 224 px for PMF."]


def test_copies_of_training_datasets_are_named_in_every_table(tmp_path: Path):
    for folder in pair(tmp_path):
        with h5py.File(folder / "results.h5", "r+") as file:
            file["coco_crops"].attrs["copy_of"] = "coco"
    (group,) = make_groups(read([tmp_path]), {})
    tables = [main_table(group), gains_table(group, group.columns[0]), pairs_table(group), *significance_tables(group)]
    expected = "Overlap: coco_crops has the content of coco, so its accuracy is not that of an unseen dataset (Pre-trained and PMF)."
    assert [table.notes for table in tables] == [[expected]] * 5


def test_searches(tmp_path: Path):
    a, b = pair(tmp_path)
    set_columns(a, search="valid:x+y", lr=0.1)
    set_columns(b, search="paper", lr=0.1)
    first, second = notes(tmp_path)
    assert first == "Learning rate chosen on differs: valid for Pre-trained; paper for PMF."
    assert second.startswith("PMF: the learning rate was chosen on episodes of the test itself with their query labels")
    set_columns(a, search="paper", lr=0.1)
    (only,) = notes(tmp_path)
    assert only.startswith("Pre-trained and PMF: the learning rate was chosen on episodes of the test itself")


def test_ablation_grid(tmp_path: Path):
    changes: dict[str, dict[str, object]] = {
        "smat": {},
        "no_teacher": {"teacher": {"steps": 0}},
        "no_split": {"query_split": False},
        "dense": {"interpolated": False, "masks": {"kind": "dense"}},
        "mlp": {"name": "mlp_experts"},
    }
    for i, (name, change) in enumerate(changes.items()):
        run = make_run(tmp_path / name, "smat", 0.9, 8)
        recipe(run, "method", **change)
        method = str(change.get("name", "smat"))
        add_eval(run, "proto", draw(0.04 - 0.01 * i, 0, names=NAMES), method, tau=0.9, experts=8)
    (group,) = make_groups(read([tmp_path]), {})
    table = ablation_table(group)
    assert table is not None
    assert table.heads[:5] == ["Support/query split", "Interpolated experts", "Learned sparsity", "All layers", "Dense teacher"]
    grid = {row.label: "".join("x" if c.text else "-" for c in row.cells[:5]) for row in table.blocks[0].rows}
    assert grid == {"smat": "xxxxx", "no_teacher": "xxxx-", "no_split": "-xxxx", "dense": "x--xx", "MLP experts": "x---x"}
    best = table.blocks[0].rows[0]
    assert best.label == "smat"
    assert best.cells[5].bold
    assert best.cells[5].estimate.mean == pytest.approx(np.mean([accuracies(0.04, name, 40) for name in NAMES[:2]]))


def test_strategies(tmp_path: Path):
    run = make_run(tmp_path / "smat", "smat", 0.9, 8)
    for adapt, shift in (("proto", 0.0), ("flip", 0.01), ("full-steps20", 0.05)):
        set_columns(add_eval(run, adapt, draw(shift, shift, names=NAMES)), search="valid" if "full" in adapt else "")
    (group,) = make_groups(read([tmp_path]), {})
    table = strategies_table(group)
    assert table is not None
    assert [b.title for b in table.blocks] == ["SMAT (smat)"]
    rows = {row.label: row.cells for row in table.blocks[0].rows}
    assert list(rows) == ["proto", "flip", "full-steps20"]
    assert rows["full-steps20"][4].text == "valid"
    delta = accuracies(0.05, "coco_crops", 40) - accuracies(0.0, "coco_crops", 40)
    gain = rows["full-steps20"][3]
    assert gain.estimate.mean == pytest.approx(delta.mean())
    assert gain.estimate.half_width == pytest.approx(1.96 * stats.sem(delta))
    assert gain.bold
    assert not rows["proto"][2].estimate.known
    assert [c.family for c in group.columns][-1] == "Gradient-based"


def test_significance(tmp_path: Path):
    pair(tmp_path)
    (group,) = make_groups(read([tmp_path]), {})
    whole, details = significance_tables(group)
    assert not details.inline
    assert [b.title for b in details.blocks] == list(NAMES)
    delta = accuracies(0.01, "coco_crops", 40) - accuracies(0.0, "coco_crops", 40)
    (row,) = whole.blocks[1].rows
    assert row.label == "PMF vs. Pre-trained"
    assert row.cells[0].estimate.mean == pytest.approx(delta.mean())
    p = stats.wilcoxon(np.round(delta, 9)).pvalue
    assert row.cells[3].text == (f"{p:.3f}" if p >= 0.001 else f"{p:.1e}")
    low, high = map(float, str(row.cells[1].text).split(" to "))
    assert (low, high) == pytest.approx(tuple(100 * (delta.mean() + s * 1.96 * stats.sem(delta)) for s in (-1, 1)), abs=0.3)


def test_the_dataset_table_is_linked_not_shown(tmp_path: Path):
    from smatcli.report.write import report

    pair(tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    text = made.index.read_text()
    assert "significance-5w5s10q-40-datasets.csv" in text
    assert text.count("| PMF vs. Pre-trained |") == 2


def save(path: Path, **shapes: list[int]) -> None:
    """Write a safetensors file of float32 zeros by hand."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def group(tmp_path: Path) -> ResultGroup:
    run = make_run(tmp_path / "smat", "smat", 0.9, 4, [0.1, 0.2, 0.3], sparsity_inference=0.75)
    save(run / "checkpoints" / "best" / "model.safetensors", theta_pre=[1000], theta_delta=[1000], log_alpha=[4, 1000], other=[3, 5])
    for adapt in ("proto", "flip"):
        folder = add_eval(run, adapt, draw(0, 0, names=NAMES))
        with h5py.File(folder / "results.h5", "r+") as file:
            for name in NAMES:
                file[name]["passes"] = np.full(40, 1 if adapt == "proto" else 9)
                if adapt == "flip":
                    file[name]["peak_memory"] = np.full(40, 3 * 2.0**30)
    return make_groups(read([tmp_path]), {})[0]


def test_parameter_counts(group: ResultGroup):
    size = size_of(group.columns[0].evaluation.run)
    assert size is not None
    assert (size.backbone, size.dense, size.experts, size.nonzero) == (1000, 6015, 4000, 1000)
    assert size.compressed == 1000 * 8
    assert size.disk > 4 * 6015
    table = parameter_table(group)
    assert table is not None
    (row,) = table.blocks[0].rows
    assert row.label == "SMAT"
    assert [c.text for c in row.cells][:5] == ["1,000", "6,015", "4,000", "1,000", "8,000"]


def test_costs(group: ResultGroup):
    table = cost_table(group)
    assert table.heads == ["Seconds / task", "Passes / task", "Peak memory (GiB)", "Training: seconds / update"]
    # 1.5 s for 40 episodes; validations logged at 0, 1, 2 s for updates 0, 100, 200
    assert [[c.text for c in row.cells] for row in table.blocks[0].rows] == [
        ["0.0375", "1.0", "", "0.01"],
        ["0.0375", "9.0", "3.00", "0.01"],
    ]


def test_files_that_are_no_checkpoint(tmp_path: Path):
    for name, content in (("a", b""), ("b", b"\xff" * 8), ("c", (5).to_bytes(8, "little") + b"[1,2]"), ("d", b"\x02" + bytes(7) + b"{}")):
        (tmp_path / name).write_bytes(content)
        assert tensor_shapes(tmp_path / name) == {}
    assert tensor_shapes(tmp_path / "none") == {}
