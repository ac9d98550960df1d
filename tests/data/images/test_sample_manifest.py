"""Damaged notes of drawn samples are named in one line; files of others that are called so are left alone."""

import json

import pytest
from PIL import Image

from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b/0.png")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"classes": ["a"], "files": [{"file": "b/0.png", "label": 7}]},
            "label of b/0.png is 7, but there are 1 classes",
        ),
        ({"classes": ["a"], "files": [{"file": "b/0.png", "label": "a"}]}, "label of b/0.png is 'a'"),
        ({"classes": ["a"], "files": [{"file": "b/0.png", "label": -1}]}, "label of b/0.png is -1"),
        ({"classes": ["a"], "files": ["b/0.png"]}, "lists 'b/0.png' instead of a file and its label"),
        ({"classes": ["a"]}, "has no list of files"),
        ({"files": []}, "has no list of class names"),
    ],
)
def test_a_damaged_manifest_is_named(folder, content, message):
    (folder / "manifest.json").write_text(json.dumps({"kind": "samples", **content}))
    with pytest.raises(InputError, match=rf"manifest.json is damaged: .*{message}.*; generate the samples again"):
        ImageFolderSource(folder)


@pytest.mark.parametrize("content", ["[1, 2", "[]", '{"kind": "dataset"}'])
def test_files_of_others_are_left_alone(folder, content):
    (folder / "manifest.json").write_text(content)
    assert ImageFolderSource(folder).classes == ["b"]


def test_class_folders_may_be_called_as_our_files_are(folder):
    (folder / "b").rename(folder / "manifest.json")
    assert ImageFolderSource(folder).classes == ["manifest.json"]
