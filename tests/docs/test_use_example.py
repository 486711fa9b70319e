"""The example of docs/use.md runs unchanged."""

import re
from pathlib import Path

import pytest

from tests.deploy.world import COLOURS, make_run, photo
from tests.runs.eval_results import write_evaluation


def test_the_page_s_example_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repo / "docs" / "use.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    make_run(tmp_path / "runs", name="smat")
    for name, colour in (("known/finch", COLOURS["red"]), ("known/heron", COLOURS["blue"]), ("new", COLOURS["blue"])):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            photo(colour, 10 * len(name) + i).save(tmp_path / "photos" / name / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], "docs/use.md", "exec"), {})
    assert capsys.readouterr().out.count("heron") == 2
    assert (tmp_path / "birds.smat").is_file()
    write_evaluation(tmp_path / "runs/smat/eval/proto-5w5s10q-test", {"birds": ("ID", "5w5s10q-test", 0.5432, 0.01)})
    exec(compile(blocks[1], "docs/use.md", "exec"), {})
    assert "54.3" in capsys.readouterr().out
