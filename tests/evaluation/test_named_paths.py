"""Names of sample sets, results and runs on a command line."""

import pytest

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.arguments.named_paths import parse_named_paths


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=1e-4/smp", "smp-cfg1.0", "smp-cfg1.5", "plain"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "set.v2.npz").touch()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lr=1e-4/smp"], {"smp": "lr=1e-4/smp"}),
        (["low=lr=1e-4/smp"], {"low": "lr=1e-4/smp"}),
        (["smp-cfg1.0", "smp-cfg1.5/"], {"smp-cfg1.0": "smp-cfg1.0", "smp-cfg1.5": "smp-cfg1.5/"}),
        (["set.v2.npz"], {"set.v2": "set.v2.npz"}),
        (["a=nowhere", "b=plain"], {"a": "nowhere", "b": "plain"}),
        (["plain/../plain/."], {"plain": "plain/../plain/."}),
        (
            ["openmoji:train?label=subcategory"],
            {"openmoji:train?label=subcategory": "openmoji:train?label=subcategory"},
        ),
        (["fine=openmoji:train?label=subcategory"], {"fine": "openmoji:train?label=subcategory"}),
    ],
)
def test_a_path_that_exists_is_called_by_its_last_part(arguments, expected):
    assert parse_named_paths(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "other=plain", "plain=nowhere"], "two paths are called 'plain'"),
        (["runs/lr=1e-4/gone"], "runs/lr=1e-4/gone does not exist.*'runs/lr' is not a name"),
        (["=plain"], "'' is not a name"),
        (["..=plain"], r"'\.\.' is not a name"),
    ],
)
def test_what_is_neither_path_nor_name_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_named_paths(arguments)
