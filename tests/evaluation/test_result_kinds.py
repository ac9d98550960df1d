"""Results as types: a command is a function that gives one, and a report shows every kind that is registered."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.arguments.named_paths import parse_named_paths
from tcae_diffusers.evaluation.commands import reconstruction
from tcae_diffusers.evaluation.report import page
from tcae_diffusers.evaluation.results.kinds import RESULT_KINDS
from tcae_diffusers.evaluation.results.kinds.reconstruction import ReconstructionResult
from tcae_diffusers.evaluation.results.reading import collect_results, read_result
from tcae_diffusers.evaluation.results.result import Card, Result, as_figures
from tcae_diffusers.files import write_json
from tcae_diffusers.metrics.figure import Baseline, Estimate, Figure

from .conftest import evaluate


def test_a_figure_is_read_as_it_was_stored():
    floor = Estimate(value=1.0, std_over_draws=0.1, details={"images": [8, 9]})
    figure = Figure(
        name="gFD-x",
        value=2.0,
        interval=0.5,
        interval_method="made up",
        samples=9,
        better="lower",
        floor=floor,
        baseline=Baseline("chance", 3.0),
        details={"r_squared": 0.9},
    )
    stored = figure.to_json()
    assert stored["floor"] == {"value": 1.0, "std_over_draws": 0.1, "images": [8, 9]}
    assert stored["r_squared"] == 0.9 and "reference_images" not in stored
    assert Figure.from_json(stored) == figure


def test_a_command_is_a_function_that_writes_nothing_until_its_result_is_saved(
    tiny_autoencoder, image_folder, tmp_path
):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    output = tmp_path / "out"
    arguments = reconstruction.ReconstructionArguments(
        autoencoder=str(tmp_path / "vae"), data=str(image_folder), extractor="none", device="cpu", output=output
    )
    result = reconstruction.run(arguments)
    assert not output.exists()
    result.save(output)
    assert {file.name for file in output.iterdir()} == {"reconstruction.json", *result.files}
    assert read_result(output / "reconstruction.json", ReconstructionResult).figures == result.figures
    with pytest.raises(InputError, match="batch_size 0"):
        reconstruction.ReconstructionArguments(autoencoder="x", data="x", output=output, batch_size=0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("openmoji:heldout", "held-out images"), ("x/no_heldout", "images of x/no_heldout")],
)
def test_a_card_calls_images_held_out_where_that_is_known(spec, words):
    psnr = Figure(name="PSNR (dB)", value=20.0, samples=9, better="higher")
    result = ReconstructionResult(figures=[psnr], autoencoder={}, data={"spec": spec})
    assert result.cards()[0].note == f"on 9 {words}"


@dataclass(kw_only=True)
class WarmthResult(Result):
    """A kind that only this test knows."""

    kind: ClassVar[str] = "warmth"

    figures: list[Figure]

    def __post_init__(self):
        self.figures = as_figures(self.figures)

    def figures_by_subject(self):
        return {"the room": self.figures}

    def cards(self):
        return [Card("21 °C", "warmth", "of the room")]


def test_a_new_kind_is_one_class_and_one_registration(tmp_path, monkeypatch):
    figure = Figure(name="temperature", value=21.0, samples=1, better="higher")
    WarmthResult(figures=[figure], command="measure the room").save(tmp_path)
    with pytest.raises(InputError, match="no results below"):
        collect_results([tmp_path])
    monkeypatch.setitem(RESULT_KINDS, "warmth", WarmthResult)
    assert evaluate("report", "--results", tmp_path, "--output", tmp_path / "report.html") == 0
    html = (tmp_path / "report.html").read_text()
    for content in ("21 °C", "temperature ↑", "the room", "measure the room"):
        assert content in html


def test_results_beside_each_other_never_write_the_same_file(tmp_path):
    outputs = ("a", "a.json", "a/b.json", "b.json", "a.b.json", "warmth.json")
    results = {output: WarmthResult(figures=[], files={"room.png": output}) for output in outputs}
    for output, result in results.items():
        result.save(tmp_path / output)
    for output, result in results.items():
        assert (result.folder / "room.png").read_text() == output
        assert result.path is not None and WarmthResult(figures=[], path=result.path).folder == result.folder


def test_every_kind_shows_something_and_has_its_templates():
    templates = Path(page.__file__).parent / "templates"
    for name, kind in RESULT_KINDS.items():
        assert kind.kind == name
        assert kind.template or kind.table_template
        for template in filter(None, (kind.template, kind.table_template)):
            assert (templates / template).is_file()


def test_a_result_that_lacks_something_is_named(tmp_path):
    write_json(tmp_path / "probing.json", {"kind": "probing", "figures": [], "autoencoder": {}, "data": {}})
    with pytest.raises(InputError, match=r"probing\.json: a probing result must have pictures, labels, classes"):
        collect_results([tmp_path])


def test_names_and_paths_may_hold_equals_signs(tmp_path):
    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    assert parse_named_paths([str(folder)]) == {"lr=1e-4": str(folder)}
    assert parse_named_paths([f"a=b={folder}", "c=nowhere=x"]) == {"a=b": str(folder), "c": "nowhere=x"}
