"""Named protocols: the settings that they replace in a recipe and on the command line."""

import pytest

from smatcli.config import load_recipe
from smatcli.config.protocols import episode_config, protocol
from smatcli.config.schema import EpisodeConfig, TrainRecipe
from smatcli.data.episodes.sampler import protocol_tag
from smatcli.errors import UserError

RECIPE = """
kind: train
run: runs/x
data: {root: data, train: [birds]}
train: {steps: 1}
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-dataset", EpisodeConfig(kind="meta-dataset")),
        ("md-oneshot", EpisodeConfig(kind="meta-dataset", balanced=1)),
        ("variable", EpisodeConfig(kind="variable")),
        ("fixed", EpisodeConfig()),
        ("5w5s", EpisodeConfig()),
        ("20w1s15q", EpisodeConfig(ways=20, shots=1, queries=15)),
        ("5-10w1-5s10q", EpisodeConfig(ways=(5, 10), shots=(1, 5))),
        ("5w5sautoq", EpisodeConfig(queries="auto")),
        ("lists/x.npz", EpisodeConfig(kind="list", file="lists/x.npz")),
    ],
)
def test_names(name, expected):
    assert episode_config(name) == expected


@pytest.mark.parametrize("name", ["meta-dataset", "md-oneshot", "variable", "5w5s10q", "20w1s15q", "5-10w1-5s10q", "5w5sautoq"])
def test_a_name_is_its_own_tag(name):
    assert protocol_tag(episode_config(name), "test") == f"{name}-test"


@pytest.mark.parametrize(
    ("settings", "tag"),
    [
        ({"kind": "variable", "balanced": (1, 10), "min_images": 11}, "variable-1-10s-min11-test"),
        ({"kind": "meta-dataset", "ontology": "dag", "ignore_hierarchy": 0.5}, "meta-dataset-ontology-dag-flat0.5-test"),
        ({"kind": "meta-dataset", "balanced": 1, "max_ways": 20}, "meta-dataset5-20w10q500s100c-1s-test"),
        ({"kind": "fixed", "queries": "auto", "min_images": 6}, "5w5sautoq-min6-test"),
    ],
)
def test_changed_numbers_are_in_the_tag(settings, tag):
    assert protocol_tag(EpisodeConfig(**settings), "test") == tag


@pytest.mark.parametrize("name", ["metadataset", "5w", "w5s", "5w5sq", "one-shot"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=f"unknown episode protocol '{name}'.*md-oneshot"):
        protocol(name)


def test_single_settings_can_be_changed():
    assert episode_config("md-oneshot", ["balanced=[1, 3]", "min_images=4"]) == EpisodeConfig(
        kind="meta-dataset", balanced=(1, 3), min_images=4
    )
    with pytest.raises(UserError, match="episode protocol 5w5s: unknown key 'quries'; did you mean 'queries'"):
        episode_config("5w5s", ["quries=3"])
    with pytest.raises(UserError, match="queries"):
        episode_config("5w5s", ["queries=many"])


@pytest.fixture
def load(tmp_path):
    def loaded(text: str = "", *overrides: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE + text)
        return load_recipe(path, overrides)

    return loaded


def episodes(loaded) -> tuple[EpisodeConfig, EpisodeConfig]:
    assert isinstance(loaded.recipe, TrainRecipe)
    return loaded.recipe.episode, loaded.recipe.eval.episode


def test_names_in_a_recipe(load):
    train, test = episodes(load("episode: meta-dataset\neval: {episode: md-oneshot}\n"))
    assert (train, test) == (EpisodeConfig(kind="meta-dataset"), EpisodeConfig(kind="meta-dataset", balanced=1))


def test_names_as_overrides(load):
    found = load("eval: {episode: {ways: 7, shots: 3}}\n", "eval.episode=5w1s", "eval.episode.queries=15", "episode=variable")
    assert episodes(found) == (EpisodeConfig(kind="variable"), EpisodeConfig(shots=1, queries=15))
    assert found.origins["eval.episode.shots"] == "command line"
    assert found.origins["eval.episode.min_ways"] == "default"
    whole = load("episode: meta-dataset\n", "episode.min_images=20", "eval.episode={kind: fixed, ways: [5, 9]}")
    assert episodes(whole) == (EpisodeConfig(kind="meta-dataset", min_images=20), EpisodeConfig(ways=(5, 9)))


def test_unknown_names_in_a_recipe_are_one_line(load):
    for arguments in (("episode: 5x5s\n",), ("", "eval.episode=meta-datset")):
        with pytest.raises(UserError, match="unknown episode protocol"):
            load(*arguments)
