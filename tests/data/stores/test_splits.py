"""Splits by class: counts per split, fixed random draws, and validation of splits files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smatcli.data.stores.splits import class_counts, match_splits, parse_shares, read_splits, split_by_chance, split_by_names, split_remark
from smatcli.errors import UserError

DEFAULT = (65.0, 15.0, 20.0)


@pytest.mark.parametrize(
    ("total", "counts"),
    [(100, (65, 15, 20)), (1000, (650, 150, 200)), (60, (39, 9, 12)), (20, (10, 5, 5)), (15, (5, 5, 5)), (14, (9, 0, 5)), (11, (6, 0, 5)),
     (10, (5, 0, 5)), (9, (0, 0, 9)), (1, (0, 0, 1))],
)  # fmt: skip
def test_counts_of_the_default(total, counts):
    assert class_counts(total, DEFAULT) == counts


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [(20, (70, 15, 15), (10, 5, 5)), (200, (70, 15, 15), (140, 30, 30)), (6, (100, 0, 0), (6, 0, 0)), (30, (0, 0, 100), (0, 0, 30)),
     (12, (80, 0, 20), (7, 0, 5)), (8, (80, 20, 0), (8, 0, 0)), (50, (10, 10, 80), (5, 5, 40)), (15, (1, 37, 62), (5, 5, 5))],
)  # fmt: skip
def test_counts_of_other_shares(total, shares, counts):
    assert class_counts(total, shares) == counts


@given(st.integers(1, 500), st.integers(0, 100), st.integers(0, 100))
def test_counts_keep_the_rule(total, first, second):
    low, high = sorted((first, second))
    shares = (low, high - low, 100 - high)
    counts = class_counts(total, shares)
    assert sum(counts) == total
    assert all(count >= 0 for count in counts)
    assert all(count == 0 for count, share in zip(counts, shares, strict=True) if share == 0)
    if sum(count > 0 for count in counts) > 1:
        assert all(count == 0 or count >= 5 for count in counts)
    if total >= 15:
        assert all(count >= 5 for count, share in zip(counts, shares, strict=True) if share > 0)
        raised = sum(share > 0 for share in shares) - 1
        assert all(
            abs(count - total * share / 100) < 1 or count == 5 or count < total * share / 100
            for count, share in zip(counts, shares, strict=True)
        )
        assert all(count >= total * share / 100 - 1 - 5 * raised for count, share in zip(counts, shares, strict=True))


def test_chance_is_fixed_by_seed_and_dataset_and_is_not_the_names_order():
    names = [f"class{i:03d}" for i in range(100)]
    codes = split_by_chance(names, "birds", DEFAULT)
    assert np.bincount(codes).tolist() == [65, 15, 20]
    np.testing.assert_array_equal(codes, split_by_chance(names, "birds", DEFAULT))
    assert (codes != split_by_chance(names, "cars", DEFAULT)).any()
    assert (codes != split_by_chance(names, "birds", DEFAULT, 1)).any()
    assert (np.diff(codes.astype(int)) < 0).sum() > 10


def test_every_class_comes_into_every_part_equally_often():
    names = [str(i) for i in range(20)]
    drawn = np.array([split_by_chance(names, "d", (50, 25, 25), seed) for seed in range(2000)])
    for code, share in enumerate((0.5, 0.25, 0.25)):
        found = (drawn == code).mean(0)
        assert np.abs(found - share).max() < 4.5 * np.sqrt(share * (1 - share) / 2000)


def test_chance_does_not_change_between_versions():
    assert "".join(map(str, split_by_chance([str(i) for i in range(16)], "birds", DEFAULT))) == FIXED


FIXED = "0101022021102210"


@pytest.mark.parametrize("text", ["70/15", "a/b/c", "", "70/15/15/0", "-10/60/50", "nan/0/100"])
def test_shares_that_are_none(text):
    with pytest.raises(UserError, match="65/15/20"):
        parse_shares(text)


def test_shares():
    assert parse_shares("70/15/15") == (70, 15, 15)
    assert parse_shares("33.4/33.3/33.3") == (33.4, 33.3, 33.3)
    with pytest.raises(UserError, match="adds up to 95"):
        parse_shares("70/15/10")


def test_remarks():
    assert split_remark(100, DEFAULT) is None
    assert split_remark(30, (100, 0, 0)) is None
    assert "11 classes are too few" in (split_remark(11, DEFAULT) or "")
    assert "6 train, 0 valid, 5 test" in (split_remark(11, DEFAULT) or "")
    assert "only be meta-tested" in (split_remark(7, DEFAULT) or "")


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


SPLITS = {"train": ["ant", "bee"], "valid": ["cat"], "test": ["dog"]}


@pytest.mark.parametrize("data", [SPLITS, {"birds": SPLITS, "cars": {"train": []}}])
def test_splits_file_flat_or_by_dataset(tmp_path, data):
    found = read_splits(write(tmp_path / "s.json", data), "birds")
    assert split_by_names(["dog", "bee", "cat", "ant"], found, "s.json").tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ([], "expected"),
        ({}, "expected"),
        ({"train": [], "val": ["a"]}, "did you mean 'valid'"),
        ({"train": ["a"], "test": ["a"]}, "listed twice"),
        ({"train": [1.5]}, "not a list of class names"),
        ({"train": ["a"], "test": "b"}, "not a list of class names"),
        ({"bird": SPLITS}, "did you mean 'bird'"),
        ({"birds": 3}, "expected an object"),
    ],
)
def test_bad_splits_files(tmp_path, data, said):
    with pytest.raises(UserError, match=said):
        read_splits(write(tmp_path / "s.json", data), "birds")


def test_missing_splits_file(tmp_path):
    with pytest.raises(UserError, match="splits file does not exist"):
        read_splits(tmp_path / "s.json", "birds")


def test_names_of_only_one_side(tmp_path):
    chosen = read_splits(write(tmp_path / "s.json", SPLITS), "birds")
    with pytest.raises(UserError, match=r"no class 'dog' in the data; did you mean 'dogs'"):
        split_by_names(["ant", "bee", "cat", "dogs"], chosen, "s.json")
    with pytest.raises(UserError, match=r"'dogs', 'eel' is in no split; did you mean 'dog'"):
        split_by_names(["ant", "bee", "cat", "dog", "dogs", "eel"], chosen, "s.json")


# Lines of Meta-Dataset's published *_splits.json beside the names that the raw downloads give.
PUBLISHED = [
    ("F-16A/B", "F-16A_B"),
    ("F/A-18", "F/A-18"),
    ("BAE 146-200", "BAE_146-200"),
    ("747-400", "747-400"),
    ("001.Black_footed_Albatross", "Black footed Albatross"),
    ("polka-dotted", "polka_dotted"),
    ("0871.Pluteus umbrosus var. umbrosus ", "0871.Pluteus umbrosus var. umbrosus"),
    ("090.canna lily", "canna lily"),
    ("060.pink-yellow dahlia?", "pink_yellow_dahlia"),
    ("035.alpine sea holly", "035.alpine_sea_holly"),
    ("00.Speed limit (20km/h)", "00000"),
    ("42.End of no passing by vehicles over 3.5 metric tons", "00042"),
    ("14.Stop", "14"),
    ("t-shirt", "t-shirt"),
    ("The Eiffel Tower", "The_Eiffel_Tower"),
]


@pytest.mark.parametrize("ours_first", [True, False])
def test_published_names_find_the_names_of_the_raw_downloads(ours_first):
    pairs = [(a, b) if ours_first else (b, a) for a, b in PUBLISHED]
    splits = {listed: ("train", "valid", "test")[i % 3] for i, (listed, _) in enumerate(pairs)}
    found = match_splits([name for _, name in reversed(pairs)], splits, "s.json")
    assert found == {name: splits[listed] for listed, name in pairs}


def test_numbers_stand_for_numbered_classes(tmp_path):
    """Meta-Dataset's older flower and traffic sign files are lists of numbers."""
    path = write(tmp_path / "s.json", {"train": [90, 38], "test": [5], "valid": [102]})
    names = ["005.english marigold", "038.great masterwort", "090.canna lily", "102.blackberry lily"]
    assert split_by_names(names, read_splits(path, "vgg_flower"), "s.json").tolist() == [2, 0, 0, 1]
    with pytest.raises(UserError, match="no class '90', '38'"):
        split_by_names(["english marigold", "great masterwort"], read_splits(path, "vgg_flower"), "s.json")


def test_a_group_of_classes_by_its_folder():
    names = ["Greek/character01", "Greek/character02", "Bengali/character01", "ULOG/character01"]
    splits = {"Greek": "train", "Bengali": "valid", "ULOG/character01": "test"}
    assert split_by_names(names, splits, "s.json").tolist() == [0, 0, 1, 2]


def test_names_that_fit_two_ways_are_not_guessed():
    with pytest.raises(UserError, match="no class 'A_1' in the data"):
        match_splits(["A-1", "A 1"], {"A_1": "train"}, "s.json")
    with pytest.raises(UserError, match="'A 1' is in no split"):
        match_splits(["A-1", "A 1"], {"A-1": "train"}, "s.json")
    with pytest.raises(UserError, match=r"no class '001\.Laysan' in the data"):
        match_splits(["001.Sooty"], {"001.Laysan": "train"}, "s.json")  # only the number is the same
    assert match_splits(["A-1", "A 1"], {"A_1": "test", "A-1": "train"}, "s.json") == {"A-1": "train", "A 1": "test"}


def test_classes_that_the_source_left_out_may_be_listed():
    splits = {"dog": "train", "hair_drier": "valid", "cat": "test"}
    assert match_splits(["cat", "dog"], splits, "s.json", dropped=["hair drier", "toaster"]) == {"cat": "test", "dog": "train"}


def test_a_dataset_spec_is_no_splits_file(tmp_path):
    spec = {"name": "dtd", "classes_per_split": {"TRAIN": 1}, "class_names": {"0": "a"}, "__class__": "DatasetSpecification"}
    with pytest.raises(UserError, match=r"is a dataset_spec\.json"):
        read_splits(write(tmp_path / "s.json", spec), "dtd")


@pytest.mark.parametrize("names", [[True], [1, "a"], [None], [[1]]])
def test_lists_of_other_things(tmp_path, names):
    with pytest.raises(UserError, match="train is not a list of class names"):
        read_splits(write(tmp_path / "s.json", {"train": names}), "d")
