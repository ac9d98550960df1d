"""What is drawn as a class is read as that class, whatever it is called and whatever lay there before."""

import json
import shutil

import numpy as np
import pytest
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.commands import measured_samples
from tcae_diffusers.evaluation.commands.measured_samples import GuidanceArguments, SamplingArguments, measure_pipeline
from tcae_diffusers.evaluation.pictures import drawing
from tcae_diffusers.evaluation.pictures.class_folders import class_folders
from tcae_diffusers.evaluation.pictures.drawing import class_names_of, load_pipeline
from tcae_diffusers.evaluation.pictures.sample_sheet import sample_sheet
from tcae_diffusers.evaluation.pictures.sample_store import SampleStore

from .conftest import draw_images, evaluate, write_folder

PLAIN = ["circles", "Pepper,_bell___healthy", "tench, Tinca tinca", "food & drink", "été"]
ODD = ["a/b", ".NET", "..", "", " x", "x.", "x" * 300, "\udcff", "con:", "back\\slash", "line\nbreak", "cat.png"]
ALIKE = ["A", "a", "crane", "crane", "caf\u00e9", "cafe\u0301", "manifest.json", "class-3", "class-07_b"]
NAMES = [*PLAIN, *ODD, *ALIKE]


def generate(pipeline, output, *extra):
    arguments = ["generate", "--pipeline", str(pipeline), "--output", str(output), "--device", "cpu"]
    return evaluate(*arguments, "--num_inference_steps", "1", *map(str, extra))


def class_folder_set(root, counts):
    """`{class name: number of images}` as class folders."""
    for name, count in counts.items():
        write_folder(root, draw_images(0, count), classes=[name])
    return root


@pytest.fixture(scope="module")
def oddly_named(save_pipeline):
    return save_pipeline(NAMES)


def test_every_class_gets_a_folder_of_its_own_and_plain_names_stay():
    folders = class_folders(NAMES)
    assert len({name.casefold() for name in folders}) == len(NAMES)
    assert folders[: len(PLAIN)] == PLAIN
    assert folders[len(PLAIN)] == "class-05_a-b" and folders[NAMES.index("")] == "class-08"
    assert not {*folders} & {*ODD, *ALIKE}
    assert class_folders(["only"]) == ["only"] and class_folders([]) == []


@pytest.mark.parametrize("layout", ["folder", "flat", "npz"])
def test_what_is_drawn_reads_back_with_the_same_labels(oddly_named, tmp_path, layout):
    output = tmp_path / "inside" / ("set.npz" if layout == "npz" else "set")
    count = 2 * len(NAMES)
    assert generate(oddly_named, output, "--layout", layout, "--num_images", count) == 0
    assert sorted(tmp_path.iterdir()) == [tmp_path / "inside"]
    assert {path.name for path in output.parent.iterdir()} <= {output.name, "set.json"}
    drawn = open_image_set(output)
    assert drawn.classes == NAMES
    assert np.bincount(drawn.labels, minlength=len(NAMES)).tolist() == [2] * len(NAMES)
    if layout == "npz":
        assert drawn.labels == list(range(len(NAMES))) * 2
        return
    # Image i has the label i modulo the number of classes.
    numbers = [int(str(file).rpartition("/")[2].removesuffix(".png")) for file in drawn.files]
    assert drawn.labels == [number % len(NAMES) for number in numbers]
    source = ImageFolderSource(output)
    assert (source.classes, source.labels.tolist()) == (NAMES, drawn.labels)
    # The commands that read it agree, and so does one that draws in its proportions.
    assert generate(oddly_named, tmp_path / "again", "--labels", output, "--num_images", count) == 0
    assert open_image_set(tmp_path / "again").labels == sorted(drawn.labels, key=class_folders(NAMES).__getitem__)


def test_an_archive_that_took_the_place_of_a_drawn_one_is_not_called_by_its_names(save_pipeline, tmp_path):
    pipeline, output = save_pipeline(["cat", "dog"]), tmp_path / "set.npz"
    arguments = [pipeline, output, "--layout", "npz", "--num_images", 4]
    assert generate(*arguments) == 0
    before = open_image_set(output)
    assert (before.classes, before.fingerprint) == (["cat", "dog"], open_image_set(output).fingerprint)
    note = json.loads((tmp_path / "set.json").read_text())
    (tmp_path / "set.json").write_text(json.dumps({**note, "classes": ["cat", "owl"]}))
    assert open_image_set(output).fingerprint != before.fingerprint
    (tmp_path / "set.json").write_text(json.dumps(note))
    assert generate(*arguments) == 0
    np.savez(output, arr_0=np.zeros((4, 16, 16, 3), np.uint8), arr_1=np.array([0, 1, 0, 1]))
    assert open_image_set(output).classes == ["0", "1"]
    assert generate(*arguments) == 2


@pytest.mark.parametrize("theirs", ["set.json", "set.parts/notes.txt"])
def test_an_archive_takes_no_place_of_files_of_others(save_pipeline, tmp_path, theirs, capsys):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text('{"theirs": 1}')
    assert generate(save_pipeline(["cat"]), tmp_path / "set.npz", "--layout", "npz", "--num_images", 1) == 2
    assert theirs.rpartition("/")[2] in capsys.readouterr().err
    assert (tmp_path / theirs).read_text() == '{"theirs": 1}' and not (tmp_path / "set.npz").exists()


def test_a_damaged_image_is_not_said_to_be_complete(save_pipeline, tmp_path, capsys):
    arguments = [save_pipeline(["cat", "dog"]), tmp_path / "set", "--num_images", 4]
    assert generate(*arguments) == 0
    (tmp_path / "set" / "manifest.json").unlink()
    (tmp_path / "set" / "cat" / "000000.png").write_bytes(b"")
    assert generate(*arguments) == 2
    assert "000000.png is damaged" in capsys.readouterr().err
    assert not (tmp_path / "set" / "manifest.json").exists()
    (tmp_path / "set" / "cat" / "000000.png").unlink()
    assert generate(*arguments) == 0 and (tmp_path / "set" / "manifest.json").exists()


def test_a_drawn_set_is_read_by_its_notes_or_refused(save_pipeline, tmp_path):
    assert generate(save_pipeline(["b", "a"]), tmp_path / "sets" / "one", "--num_images", 4) == 0
    assert open_image_set(tmp_path / "sets" / "one").classes == ["b", "a"]
    for spec in (tmp_path / "sets", f"datasets:{tmp_path}/sets/one"):
        with pytest.raises(InputError, match="holds generated samples"):
            open_image_set(spec, 16)
    with pytest.raises(InputError, match="holds generated samples"):
        ImageFolderSource(tmp_path / "sets")


@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_files_of_others_are_neither_written_over_nor_removed(save_pipeline, tmp_path, name, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text('{"theirs": 1}')
    assert generate(save_pipeline(["cat"]), tmp_path / "set", "--num_images", 1) == 2
    assert f"{name} was not written by this command" in capsys.readouterr().err
    assert json.loads((tmp_path / "set" / name).read_text()) == {"theirs": 1}


def test_images_of_any_kind_are_in_the_way_of_a_set(save_pipeline, tmp_path, capsys):
    write_folder(tmp_path / "set", draw_images(0, 1), classes=["cat"])
    (image,) = (tmp_path / "set").rglob("*.png")
    image.rename(image.with_suffix(".webp"))
    assert generate(save_pipeline(["cat"]), tmp_path / "set", "--num_images", 1) == 2
    assert "images that were not generated by this command" in capsys.readouterr().err


def test_generation_names_the_classes_that_were_drawn(oddly_named, tmp_path):
    assert generate(oddly_named, tmp_path / "set", "--num_images", 2 * len(NAMES)) == 0
    reference = class_folder_set(tmp_path / "real", {"b": 20, "c": 40})
    arguments = ["--samples", str(tmp_path / "set"), "--reference", str(reference), "--output", str(tmp_path / "out")]
    assert evaluate("generation", *arguments, "--device", "cpu", "--no_feature_cache") == 0
    (entry,) = json.loads((tmp_path / "out" / "generation.json").read_text())["sets"]
    assert entry["classes"] == NAMES
    assert entry["grid_rows"] == NAMES[:16]


def test_of_many_classes_those_with_most_samples_are_shown(tmp_path):
    labels = [label for label in range(20) for _ in range(1 if label in (2, 3, 7) else 2 + label % 3)]
    folder = class_folder_set(tmp_path, {f"class {label:02}": labels.count(label) for label in range(20)})
    _, rows = sample_sheet(open_image_set(folder))
    # Of those with two, the last one has no place left.
    assert rows == [f"class {label:02}" for label in range(20) if label not in (2, 3, 7, 18)]


def test_stock_pipelines_keep_their_whole_class_names(tmp_path, caplog):
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=4, num_embeds_ada_norm=3
    )
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32, sample_size=16)
    DiTPipeline(transformer, vae, DDIMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    names = ["tench, Tinca tinca", "crane", "crane"]
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "id2label": dict(enumerate(names))}))
    pipeline = load_pipeline(tmp_path)
    assert type(pipeline) is DiTPipeline
    assert class_names_of(pipeline) == names
    # Rows of the table that no name belongs to are none of its classes.
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "id2label": {"0": "a", "1": "b"}}))
    assert class_names_of(load_pipeline(tmp_path)) == ["a", "b"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert class_names_of(load_pipeline(tmp_path)) == ["0", "1", "2"]
    assert "the pipeline names no classes, so the 3 of its transformer are drawn" in caplog.text


# ---------------------------------------------------------------------------------------- labels in proportion of data


def images_per_class(output):
    return json.loads((output / "settings.json").read_text())["images_per_class"]


def test_labels_follow_data_by_class_name_and_not_by_position(save_pipeline, tmp_path):
    # As folders these are sorted as text: 0, 1, 10, 11, 2, ...
    counts = {str(label): label + 1 for label in range(12)}
    data = class_folder_set(tmp_path / "data", counts)
    named, unnamed = save_pipeline(sorted(counts, reverse=True)), save_pipeline([], num_classes=12)
    for pipeline, expected in (
        (named, [counts[name] for name in sorted(counts, reverse=True)]),
        (unnamed, list(counts.values())),
    ):
        output = tmp_path / pipeline.name
        assert generate(pipeline, output, "--labels", data, "--num_images", sum(counts.values())) == 0
        assert images_per_class(output) == expected


def test_synonyms_match_and_classes_without_images_stay_empty(save_pipeline, tmp_path):
    pipeline = save_pipeline(["goldfish", "tench, Tinca tinca", "Pepper,_bell"])
    data = class_folder_set(tmp_path / "data", {"tinca tinca": 1, "Pepper,_bell": 3})
    assert generate(pipeline, tmp_path / "set", "--labels", data, "--num_images", 8) == 0
    assert images_per_class(tmp_path / "set") == [0, 2, 6]
    drawn = open_image_set(tmp_path / "set")
    assert drawn.labels == ImageFolderSource(tmp_path / "set").labels.tolist() == [2] * 6 + [1] * 2
    assert drawn.classes == ["goldfish", "tench, Tinca tinca", "Pepper,_bell"]


@pytest.mark.parametrize(
    ("drawn", "data", "problem"),
    [
        (["circles", "squares"], ["cat", "dog"], "'cat', which matches none of the 2 classes"),
        (["circles", "squares"], ["circles", "squares", "stars"], "'stars', which matches none of"),
        (["A", "a", "B"], [" A"], "' A', which matches several of the 3"),
        (
            ["tench, Tinca tinca", "B"],
            ["tench", "Tinca tinca"],
            "'Tinca tinca', which matches the class of another name",
        ),
    ],
)
def test_labels_of_other_classes_are_refused(save_pipeline, tmp_path, capsys, drawn, data, problem):
    data = class_folder_set(tmp_path / "data", dict.fromkeys(data, 2))
    assert generate(save_pipeline(drawn), tmp_path / "set", "--labels", data, "--num_images", 8) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


# ----------------------------------------------------------------------------------------------- what lay there before


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def drawn(pipeline_folder, tmp_path):
    """Nine images, labelled in the proportions of a folder."""
    class_folder_set(tmp_path / "data", {"circles": 2, "squares": 1})
    assert generate(pipeline_folder, tmp_path / "set", "--labels", tmp_path / "data", "--num_images", 9) == 0
    return tmp_path / "set"


def draw_again(pipeline_folder, output, *extra):
    return generate(pipeline_folder, output, "--labels", output.parent / "data", "--num_images", 9, *extra)


def test_other_labels_do_not_mix_into_a_set(pipeline_folder, drawn, capsys):
    before = files_below(drawn)
    class_folder_set(drawn.parent / "data", {"squares": 10})
    assert draw_again(pipeline_folder, drawn) == 2
    assert "images_per_class[0]: 6 before, 2 now" in capsys.readouterr().err
    assert files_below(drawn) == before


def test_other_class_names_do_not_mix_into_a_set(save_pipeline, pipeline_folder, drawn, capsys):
    renamed = save_pipeline(["circles", "rings"])
    class_folder_set(drawn.parent / "rings", {"circles": 2, "rings": 1})
    shutil.rmtree(drawn.parent / "data")
    (drawn.parent / "rings").rename(drawn.parent / "data")
    assert draw_again(renamed, drawn) == 2
    assert "classes[1]: 'squares' before, 'rings' now" in capsys.readouterr().err


def test_the_samples_of_another_scheduler_do_not_stand_for_those_of_this_one(save_pipeline, tmp_path, capsys):
    folder = save_pipeline(["circles"], scheduler=FlowMatchEulerDiscreteScheduler())
    assert generate(folder, tmp_path / "set", "--num_images", 2) == 0
    pipeline = load_pipeline(folder)
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(folder)
    assert generate(folder, tmp_path / "set", "--num_images", 2) == 2
    error = capsys.readouterr().err
    assert "holds samples generated with other settings (scheduler" in error and "FlowMatchHeun" in error


@pytest.mark.parametrize(
    "options",
    [
        ("--height", 32, "--width", 32),
        ("--guider", "ClassifierFreeGuidance", "--guidance_scale", 3),
        ("--guider", "ClassifierFreeGuidance", "--guidance_scale", 3, "--guidance_interval", 0.2, 0.8),
    ],
)
def test_a_set_does_not_go_on_without_what_it_was_drawn_with(save_pipeline, tmp_path, capsys, options):
    folder = save_pipeline(["circles"], scheduler=FlowMatchEulerDiscreteScheduler())
    assert generate(folder, tmp_path / "set", "--num_images", 2, *options) == 0
    kept = options[:2] if options[0] == "--guider" else ()
    assert generate(folder, tmp_path / "set", "--num_images", 2, *kept) == 2
    assert f"{options[2].removeprefix('--')}: {options[3]}" in capsys.readouterr().err


def test_another_layout_does_not_mix_into_a_set(pipeline_folder, drawn, capsys):
    assert draw_again(pipeline_folder, drawn, "--layout", "flat") == 2
    assert "layout: 'folder' before, 'flat' now" in capsys.readouterr().err
    assert len(list(drawn.rglob("*.png"))) == 9


def test_a_complete_set_is_left_as_it_is(pipeline_folder, drawn, capsys):
    before = files_below(drawn)
    assert draw_again(pipeline_folder, drawn) == 0
    assert "is complete already" in capsys.readouterr().out
    assert files_below(drawn) == before


@pytest.mark.parametrize("name", ["circles/stray.png", "stray.png", "rings/000003.png"])
def test_images_that_were_not_drawn_are_in_nobodys_figures(pipeline_folder, drawn, capsys, name):
    (drawn / name).parent.mkdir(exist_ok=True)
    shutil.copy(drawn / "circles" / "000000.png", drawn / name)
    for opened in (lambda: open_image_set(drawn), lambda: ImageFolderSource(drawn)):
        with pytest.raises(
            InputError, match=f"9 samples according to its manifest.json, but also holds other images .1, .*'{name}'"
        ):
            opened()
    assert draw_again(pipeline_folder, drawn) == 2
    assert f"holds 1 images that do not belong to this set, such as {name}" in capsys.readouterr().err


def test_a_set_that_lost_images_is_unfinished_until_they_are_drawn_again(pipeline_folder, drawn):
    lost = drawn / "circles" / "000000.png"
    pixels = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=r"lacks some of them .1, the first is 'circles/000000\.png'"):
        open_image_set(drawn)
    (drawn / "manifest.json").unlink()
    with pytest.raises(InputError, match="an incomplete set of samples"):
        open_image_set(drawn)
    assert draw_again(pipeline_folder, drawn) == 0
    assert lost.read_bytes() == pixels
    assert len(open_image_set(drawn)) == 9


def test_an_interrupted_set_does_not_keep_an_old_manifest(pipeline_folder, drawn, monkeypatch):
    (drawn / "circles" / "000000.png").unlink()

    def interrupted(*_args, **_kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr("tcae_diffusers.evaluation.pictures.drawing.draw", interrupted)
    assert draw_again(pipeline_folder, drawn) == 2
    assert not (drawn / "manifest.json").exists()


def test_a_complete_archive_is_compared_too(pipeline_folder, tmp_path, capsys):
    archive = tmp_path / "set.npz"
    settings = ["--layout", "npz", "--num_images", 4]
    assert generate(pipeline_folder, archive, *settings) == 0
    before = files_below(tmp_path)
    assert generate(pipeline_folder, archive, *settings, "--seed", 1) == 2
    assert "seed: 0 before, 1 now" in capsys.readouterr().err
    assert generate(pipeline_folder, archive, *settings) == 0
    assert files_below(tmp_path) == before
    (tmp_path / "set.json").unlink()
    assert generate(pipeline_folder, archive, *settings) == 2
    assert "were not generated by this command" in capsys.readouterr().err


def test_a_result_does_not_take_the_place_of_the_notes_of_an_archive(pipeline_folder, tmp_path, capsys):
    assert generate(pipeline_folder, tmp_path / "set.npz", "--layout", "npz", "--num_images", 4) == 0
    class_folder_set(tmp_path / "data", {"b": 2, "a": 2})
    before = files_below(tmp_path)
    options = ["--samples", str(tmp_path / "set.npz"), "--reference", str(tmp_path / "data")]
    assert evaluate("generation", *options, "--output", str(tmp_path / "set.json")) == 2
    assert f"{tmp_path / 'set.json'} would replace something else" in capsys.readouterr().err
    assert files_below(tmp_path) == before


def test_a_folder_that_another_command_has_begun_is_not_taken_over(pipeline_folder, drawn, capsys, monkeypatch):
    noted = (drawn / "settings.json").read_text()
    other = drawn.parent / "other"
    other.mkdir()
    # As it is before the first image.
    (other / "settings.json").write_text(noted)
    assert draw_again(pipeline_folder, other, "--seed", 1) == 2
    assert "seed: 0 before, 1 now" in capsys.readouterr().err and (other / "settings.json").read_text() == noted
    # Both began at the same moment, and the other one noted last.
    monkeypatch.setattr(SampleStore, "_check_sizes", lambda store: pytest.fail("went on"))
    (other / "settings.json").unlink()

    def draw(*arguments, **options):
        (other / "settings.json").write_text(noted)
        return real(*arguments, **options)

    real = drawing.draw
    monkeypatch.setattr(drawing, "draw", draw)
    assert draw_again(pipeline_folder, other, "--seed", 1) == 2
    assert "seed: 0 before, 1 now" in capsys.readouterr().err and not (other / "manifest.json").exists()


def test_notes_of_somebody_else_are_none_of_ours(tmp_path):
    root = class_folder_set(tmp_path / "data", {"b": 2, "a": 1})
    for text in ('{"files": 3}', "[]", "no json", "\udcff".encode(errors="surrogateescape").decode("latin-1")):
        (root / "manifest.json").write_text(text)
        (root / "settings.json").write_text(text)
        assert open_image_set(root).classes == ImageFolderSource(root).classes == ["a", "b"]


# ------------------------------------------------------------------------------------------------------ sampling shift


def test_a_sampling_shift_changes_the_samples_and_stands_in_the_settings(pipeline_folder, tmp_path, capsys):
    settings = ["--num_images", 2, "--num_inference_steps", 3]
    assert generate(pipeline_folder, tmp_path / "plain", *settings) == 0
    assert generate(pipeline_folder, tmp_path / "shifted", *settings, "--timestep_shift", 3) == 0
    plain, shifted = open_image_set(tmp_path / "plain"), open_image_set(tmp_path / "shifted")
    assert any((plain[index] != shifted[index]).any() for index in range(2))
    noted = json.loads((tmp_path / "shifted" / "manifest.json").read_text())
    assert noted["timestep_shift"] == 3.0
    assert noted["scheduler"]["shift"] == 1.0
    assert generate(pipeline_folder, tmp_path / "plain", *settings, "--timestep_shift", 3) == 2
    assert "timestep_shift: None before, 3.0 now" in capsys.readouterr().err


def test_a_shift_that_cannot_be_drawn_with_is_refused(save_pipeline, pipeline_folder, tmp_path, capsys):
    ddim = save_pipeline(["circles", "squares"], scheduler=DDIMScheduler(clip_sample=False))
    assert generate(ddim, tmp_path / "set", "--num_images", 2, "--timestep_shift", 3) == 2
    assert "needs a flow matching scheduler" in capsys.readouterr().err
    # Nothing was drawn, so the place is free.
    assert generate(pipeline_folder, tmp_path / "set", "--num_images", 2, "--timestep_shift", 0) == 2
    assert "--timestep_shift 0.0 must be positive" in capsys.readouterr().err


def test_plans_pass_the_shift_and_the_held_out_images_on(monkeypatch, tmp_path):
    passed = []
    monkeypatch.setattr(measured_samples, "run_unless_done", lambda run, arguments, kind: passed.append(arguments))
    real = str(class_folder_set(tmp_path / "real", {"cat": 8}))
    heldout = str(class_folder_set(tmp_path / "heldout", {"cat": 9}))
    for shift in (None, 2.5):
        on_heldout = {"heldout": heldout, "fdr_networks": ["efficientnet-lite0"]} if shift else {}
        sampling = SamplingArguments(reference=real, timestep_shift=shift, **on_heldout)
        measure_pipeline("pipeline", tmp_path, "name", sampling, GuidanceArguments())
    assert [arguments.heldout for arguments in passed[1::2]] == [None, heldout]
    assert [arguments.fdr_networks for arguments in passed[1::2]] == [[], ["efficientnet-lite0"]]
    assert [arguments.timestep_shift for arguments in passed[::2]] == [None, 2.5]
    assert "timestep_shift" not in passed[0].sampling(False) and passed[2].sampling(False)["timestep_shift"] == 2.5
