"""Signs that mean something to a command line may stand in paths; a path that exists wins."""

import pytest

from tcae_diffusers.existing_paths import local_folder, scheme_before, split_after_path, split_before_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=1e-4/smp", "12:30/flat", "what?/ds", "plain"):
        (tmp_path / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("lr=1e-4/smp", "=", (None, "lr=1e-4/smp")),
        ("good=lr=1e-4/smp", "=", ("good", "lr=1e-4/smp")),
        ("good=plain", "=", ("good", "plain")),
        ("lr=1e-4/gone", "=", ("lr", "1e-4/gone")),
        ("plain", "=", (None, "plain")),
        ("lr=1=plain", "=", ("lr=1", "plain")),
    ],
)
def test_what_stands_before_a_path(here, text, separator, expected):
    assert split_before_path(text, separator) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12:30/flat", None),
        ("12:gone", None),
        ("12", None),
        ("twelve:plain", "twelve"),
        ("twelve:12:30/flat", "twelve"),
    ],
)
def test_what_begins_with_a_scheme(here, text, expected):
    assert scheme_before(text, ("12", "twelve") if "30" in text else ("twelve",)) == expected


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("12:30/flat", ":", ("12:30/flat", None)),
        ("12:30/flat:test", ":", ("12:30/flat", "test")),
        ("12:30/flat:test[:10%]", ":", ("12:30/flat", "test[:10%]")),
        ("name:test[:10%]", ":", ("name", "test[:10%]")),
        ("plain:", ":", ("plain", "")),
        ("name", ":", ("name", None)),
        ("what?/ds", "?", ("what?/ds", None)),
        ("what?/ds?label=x", "?", ("what?/ds", "label=x")),
        ("name?label=x", "?", ("name", "label=x")),
    ],
)
def test_what_stands_after_a_path(here, text, separator, expected):
    assert split_after_path(text, separator) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("12:30", "12:30"),
        ("datasets:plain", "plain"),
        ("datasets:12:30/flat:train[:10%]", "12:30/flat"),
        ("stream:plain:test?name=all", "plain"),
        ("datasets:what?/ds?label=x", "what?/ds"),
        ("datasets:name:plain", None),
        ("plain:train", None),
        ("openmoji:plain", None),
        ("", None),
    ],
)
def test_which_folder_a_source_lies_in(here, source, expected):
    assert local_folder(source) == expected
