"""Presets are files: what is in them, and what is wrong with others."""

import json
import os

import pytest

from net.errors import UserError
from net.pipeline import presets
from net.pipeline.options import PruningOptions, SharingOptions


@pytest.mark.parametrize("path", sorted(presets.folder().rglob("*.json")), ids=lambda p: p.stem)
def test_every_preset_that_is_there_can_be_loaded(path):
    found = presets.load(path.stem)
    assert found.name == path.stem == found.pruning.preset == found.sharing.preset
    assert found == presets.load(str(path))
    assert found.about
    general = path.stem in presets.GENERAL
    assert (found.arch is None) == general
    assert (path.parent == presets.folder()) == general


def test_the_paper_is_what_the_options_say():
    found = presets.load("paper")
    assert (found.pruning, found.sharing) == (PruningOptions(), SharingOptions())


def test_a_general_preset_leaves_what_depends_on_the_model_to_be_found():
    smallest = presets.load("smallest")
    assert smallest.pruning.density == smallest.sharing.noise == smallest.sharing.bits == "auto"
    assert smallest.pruning.error_budget == smallest.sharing.error_budget == 1.0
    assert smallest.sharing.share_parts <= smallest.sharing.finetune_epochs
    assert presets.load("untrained").sharing.finetune_epochs == 0


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_file_of_ones_own(tmp_path):
    content = {
        "options": {"seed": 3, "arch": "resnet-20"},
        "pruning": {"density": {"*": 0.1, "head": 0.5}},
        "sharing": {"seed": 4, "bits": 3, "fold_norms": True},
    }
    found = presets.load(write(tmp_path / "mine.json", content))
    assert (found.name, found.arch) == (str(tmp_path / "mine.json"), "resnet-20")
    # What a checkpoint records is what a later stage can be given.
    assert presets.load(found.pruning.recorded()["preset"]) == found
    assert (found.pruning.seed, found.sharing.seed) == (3, 4)
    assert found.pruning.density == {"*": 0.1, "head": 0.5}
    assert (found.sharing.bits, found.sharing.fold_norms) == (3, True)
    like_ours = presets.load(write(tmp_path / "trained.json", content))
    assert like_ours.name == str(tmp_path / "trained.json")  # not taken for ours


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a preset"),
        ([1], "is not a preset"),
        ({"options": [1]}, "is not a preset"),
        ({"options": {"sed": 1}}, "unknown 'sed'"),
        ({"pruning": {"bits": 3}}, "unknown option 'bits'"),
        ({"stages": {}}, "unknown 'stages'"),
        ({"sharing": {"bits": 99}}, "'99' is not a whole number from 1 to 16"),
        ({"options": {"seed": [1]}}, "is not a whole number"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        presets.load(write(tmp_path / "bad.json", content))
    assert message in str(error.value)
    assert "bad.json" in str(error.value)


def test_patterns_are_a_text_or_a_list(tmp_path):
    for value in ("a,b*", ["a", "b*"]):
        (tmp_path / "own.json").write_text(json.dumps({"options": {"exclude": value}}))
        found = presets.load(str(tmp_path / "own.json"))
        assert found.pruning.exclude == found.sharing.exclude == ("a", "b*")


def test_no_patterns_are_an_empty_list_or_nothing(tmp_path):
    content = {"options": {"exclude": [], "include": None}, "sharing": {"include": []}}
    found = presets.load(write(tmp_path / "own.json", content))
    for stage in (found.pruning, found.sharing):
        assert (stage.include, stage.exclude) == (None, ())


def test_no_such_preset(tmp_path):
    with pytest.raises(UserError, match=r"no preset 'smalest'; there are .*paper"):
        presets.load("smalest")
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        presets.load(str(tmp_path / "none.json"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe\.json: not a regular file"):
        presets.load(str(tmp_path / "pipe.json"))
    with pytest.raises(UserError, match="no preset 3; give --preset"):
        presets.load(3)  # as a checkpoint of somebody's may have it


def test_what_the_user_gives_comes_first():
    found = presets.load("smallest").with_options({"bits": 3, "distortion": 0.5, "amp": True})
    assert found.sharing.bits == 3
    assert found.sharing.finetune_epochs == presets.load("smallest").sharing.finetune_epochs
    for stage in (found.pruning, found.sharing):
        assert (stage.distortion, stage.amp) == (0.5, True)


def test_what_is_recorded_holds_no_paths():
    given = presets.load("paper").with_options({"weights": "some/where/net.pth"})
    assert given.pruning.recorded()["weights"] == "net.pth"
    assert given.pruning.recorded()["preset"] == "paper"
