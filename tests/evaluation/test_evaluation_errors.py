"""Bad input through the command line: exit code 2, one line that names the file or value, no traceback."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.__main__ import COMMANDS, main
from tcae_diffusers.evaluation.results.reading import collect_results

from .conftest import evaluate


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_autoencoder, pipeline_folder):
    """A folder with everything that can be wrong."""
    root = tmp_path_factory.mktemp("bad")
    tiny_autoencoder.save_pretrained(root / "vae")
    os.symlink(pipeline_folder, root / "pipeline")
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)

    def picture(path, size=32):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((size, size)).save(path)

    for index in range(9):
        picture(root / "good" / "a" / f"{index}.png")
        picture(root / "mixed" / f"{index}.png", 32 if index < 8 else 48)
        picture(root / "broken" / "a" / f"{index}.png")
    (root / "broken" / "a" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    picture(root / "one" / "a" / "0.png")
    picture(root / "few" / "0.png")
    for index in range(2):
        picture(root / "four" / "a" / f"{index}.png")
        picture(root / "four" / "b" / f"{index}.png")
        picture(root / "others" / "b" / f"{index}.png")
        picture(root / "others" / "c" / f"{index}.png")
        picture(root / "unlike" / "a" / f"{index}.png", 40)
        picture(root / "unlike" / "b" / f"{index}.png", 40)
    picture(root / "empty_class" / "a" / "0.png")
    (root / "empty_class" / "b").mkdir()
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    (root / "bad.npz").write_bytes(b"no archive")
    np.savez(root / "float.npz", arr_0=np.zeros((2, 8, 8, 3)))
    np.savez(root / "names.npz", images=np.zeros(3))
    np.savez(root / "moments.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(root / "onehot.npz", arr_0=np.zeros((9, 32, 32, 3), np.uint8), arr_1=np.eye(9))
    (root / "bad.json").write_text("{")
    (root / "other.json").write_text('{"kind": "recipe"}')
    (root / "weights.pth").write_bytes(b"no weights")
    return root


RECONSTRUCTION = "reconstruction --autoencoder {0}/vae --output {0}/out --device cpu --extractor none "
GENERATE = "generate --pipeline {0}/pipeline --output {0}/out --num_images 2 --num_inference_steps 1 --device cpu "
GENERATION = "generation --output {0}/out --device cpu --no_feature_cache "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (RECONSTRUCTION + "--data {0}/nowhere", "{0}/nowhere does not exist"),
        (RECONSTRUCTION + "--data {0}/empty_class", "{0}/empty_class/b contains no images"),
        (RECONSTRUCTION + "--data {0}/broken", "{0}/broken/a/5.png"),
        (RECONSTRUCTION + "--data {0}/one", "{0}/one holds 1 image, too few"),
        (RECONSTRUCTION + "--data {0}/good --resolution 36", "height 36 is not a multiple of 8"),
        (RECONSTRUCTION + "--data {0}/good --resolution 0", "--resolution 0 must be at least 1 pixel"),
        (
            "probing --autoencoder {0}/vae --train {0}/good --test {0}/good --resolution -8 --output {0}/out",
            "--resolution -8 must be at least 1 pixel",
        ),
        (
            "probing --autoencoder {0}/vae --train {0}/four --test {0}/unlike --output {0}/out --device cpu",
            "at least 5 training images, a fifth of them to choose by; got 4",
        ),
        (RECONSTRUCTION + "--data {0}/good --batch_size 0", "--batch_size 0"),
        (RECONSTRUCTION + "--data openmoji:nonsense", "unknown OpenMoji split 'nonsense'"),
        (RECONSTRUCTION + "--data {0}/good --autoencoder {0}/empty", "{0}/empty/config.json does not exist"),
        (RECONSTRUCTION + "--data {0}/good --autoencoder {0}/pipeline/transformer", "'DiTTransformer2DModel'"),
        (RECONSTRUCTION + "--data {0}/good --output {0}/file/out", "{0}/file"),
        (
            RECONSTRUCTION + "--data {0}/good --extractor inception --extractor_weights {0}/nowhere.pth",
            "{0}/nowhere.pth does not exist",
        ),
        (
            RECONSTRUCTION + "--data {0}/good --extractor inception --extractor_weights {0}/weights.pth",
            "cannot load weights of feature network inception from {0}/weights.pth",
        ),
        (
            RECONSTRUCTION + "--data {0}/good --extractor dinov2 --extractor_weights {0}/empty",
            "cannot load DINO weights from {0}/empty",
        ),
        (GENERATE + "--pipeline {0}/vae", "{0}/vae/model_index.json does not exist"),
        (GENERATE + "--num_images 0", "--num_images 0 must be at least 1"),
        (GENERATE + "--seed -1", "--seed -1"),
        (GENERATE + "--guidance_scale 0.5", "--guidance_scale 0.5 must be at least 1"),
        (GENERATE + "--guidance_scale nan", "--guidance_scale nan must be at least 1"),
        (GENERATE + "--resolution 0", "--resolution 0 must be at least 1 pixel"),
        (GENERATE + "--layout npz", "must end in .npz"),
        (GENERATE + "--output {0}/out.npz", "pass --layout npz"),
        (GENERATE + "--output {0}/file/out", "{0}/file"),
        (GENERATE + "--output {0}/good", "{0}/good holds images that were not generated by this command"),
        (GENERATE + "--labels {0}/good", "has the class 'a', which matches none of the 2 classes"),
        (GENERATE + "--baseline class-mean", "--baseline class-mean needs --data"),
        (GENERATE + "--guidance_scale 2 --guidance_interval 0.9 0.1", "guidance_interval (0.9, 0.1)"),
        (GENERATE + "--guidance_interval 0.1 0.9", "must be omitted unless --guidance_scale is above 1 or"),
        (GENERATE + "--guider CFG", "invalid choice: 'CFG'"),
        (GENERATE + "--guider ClassifierFreeGuidance --guidance_scale 1", "must be omitted with --guidance_scale 1"),
        (
            GENERATE + '--guider_options {{}} --guidance_scale 2 --guider_options {{"eta":1}}',
            "omitted without --guider",
        ),
        (GENERATE + '--guider AdaptiveProjectedGuidance --guider_options {{"etc":1}}', "has no 'etc'; it has"),
        (
            GENERATE + '--guider ClassifierFreeGuidance --guidance_scale 2 --guider_options {{"guidance_scale":3}}',
            "--guider_options has 'guidance_scale', which --guidance_scale says too",
        ),
        (GENERATE + "--guider AutoGuidance", "--guider AutoGuidance: Either `auto_guidance_layers` or"),
        (
            GENERATE + '--guider AutoGuidance --guider_options {{"auto_guidance_layers":[99],"dropout":1}}',
            "indices [99]",
        ),
        (GENERATE + "--resolution 64", "--resolution 64 must be omitted unless --baseline is class-mean"),
        (GENERATE + "--data {0}/good", "--data {0}/good must be omitted unless --baseline is class-mean"),
        (
            RECONSTRUCTION + "--data {0}/good --baseline_data none --baseline_basis per_position",
            "--baseline_basis per_position must be omitted with --baseline_data none",
        ),
        (
            RECONSTRUCTION + "--data {0}/good --extractor none --extractor_weights {0}/nowhere",
            "--extractor_weights {0}/nowhere must be omitted with --extractor none",
        ),
        (RECONSTRUCTION + "--data {0}/good --lpips_weights {0}/nowhere", "has no effect without --lpips"),
        (GENERATION + "--samples {0}/nowhere --reference {0}/good", "{0}/nowhere does not exist"),
        (GENERATION + "--samples {0}/empty --reference {0}/good", "no images in {0}/empty"),
        (GENERATION + "--samples {0}/few --reference {0}/good", "{0}/few holds 1 images; at least 8"),
        (GENERATION + "--samples {0}/mixed --reference {0}/good", "{0}/mixed/8.png is 48x48 pixels, expected 32x32"),
        (GENERATION + "--samples {0}/broken --reference {0}/good", "cannot read image {0}/broken/a/5.png"),
        (GENERATION + "--samples {0}/bad.npz --reference {0}/good", "cannot read image archive {0}/bad.npz"),
        (GENERATION + "--samples {0}/float.npz --reference {0}/good", "arr_0 is float64"),
        (GENERATION + "--samples {0}/names.npz --reference {0}/good", "has arrays ['images']"),
        (
            GENERATION + "--samples {0}/onehot.npz --reference {0}/good",
            "arr_1 holds float64 (9, 9) labels",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/onehot.npz",
            "arr_1 holds float64 (9, 9) labels",
        ),
        (GENERATION + "--samples {0}/good --reference {0}/names.npz", "expected mu and sigma, or images in arr_0"),
        (GENERATION + "--samples {0}/good {0}/good --reference {0}/good", "two paths are called 'good'"),
        (GENERATION + "--samples {0}/good --reference {0}/good --reference_count 3", "--reference_count '3'"),
        (GENERATION + "--samples {0}/good --reference {0}/good --reference_count 10", "there are only 9 real images"),
        (GENERATION + "--samples {0}/good --reference {0}/four", "reference {0}/four has 4 images; at least 8"),
        (GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/few", "{0}/few has no labels"),
        (GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/good", "are the same images"),
        (GENERATION + "--samples {0}/good --reference {0}/moments.npz --heldout {0}/good", "it holds statistics only"),
        (
            GENERATION + "--samples {0}/good --reference {0}/four --heldout {0}/good",
            "{0}/good has the single class 'a'",
        ),
        (GENERATION + "--samples {0}/few --reference {0}/good --heldout {0}/four", "{0}/few has no labels, without"),
        (
            GENERATION + "--samples {0}/good --reference {0}/four --heldout {0}/others",
            "{0}/four has the class 'a', which is none of {0}/others: b, c",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/good --fdr_networks inception",
            "--fdr_networks inception has no effect without --heldout",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/few --fdr_networks vgg=a",
            "--fdr_networks ['vgg=a'] must be some of inception, efficientnet-lite0",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/few --fdr_networks efficientnet-lite0",
            "{0}/few has 1 images; FDr needs at least 8",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/moments.npz --heldout {0}/good"
            " --fdr_networks efficientnet-lite0",
            "--fdr_networks efficientnet-lite0 needs real images as --reference",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/few"
            " --fdr_networks efficientnet-lite0 efficientnet-lite0",
            "names efficientnet-lite0 twice",
        ),
        (
            GENERATION + "--samples {0}/good --reference {0}/good --heldout {0}/few --fdr_networks dinov2={0}/nowhere",
            "weights of feature network dinov2: {0}/nowhere does not exist",
        ),
        (
            GENERATION + "--reference {0}/good --samples " + "x" * 201 + "={0}/good",
            "a name of 201 bytes is too long for a file; give {0}/good a shorter one",
        ),
        ("report --results {0}/nowhere", "{0}/nowhere does not exist"),
        ("report --results {0}/empty", "no results below {0}/empty"),
        ("report --results {0}/bad.json", "{0}/bad.json is not a JSON result"),
        ("report --results {0}/other.json", "{0}/other.json is not a result of this package"),
        (RECONSTRUCTION + "--data {0}/good --lpips alex --lpips_weights {0}/nowhere.pth", "{0}/nowhere.pth"),
        (RECONSTRUCTION + "--data {0}/good --lpips alex --lpips_weights {0}/weights.pth", "{0}/weights.pth cannot"),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/good --output {0}/out --intervals 1",
            "is not FROM:TO",
        ),
        # Before anything is drawn.
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/good --output {0}/out --heldout {0}/few",
            "{0}/few has no labels",
        ),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/nowhere --output {0}/out",
            "{0}/nowhere does not exist",
        ),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/good --output {0}/out --extractor inception "
            "--extractor_weights {0}/weights.pth",
            "cannot load weights of feature network inception from {0}/weights.pth",
        ),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/moments.npz --output {0}/out",
            "{0}/moments.npz holds Inception statistics",
        ),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/good --output {0}/out --num_images 7",
            "--num_images 7 must be at least 8, to be measured",
        ),
        (
            "guidance_sweep --pipeline {0}/pipeline --reference {0}/good --output {0}/out --scales 0 1",
            "--scales [0.0, 1.0] must be at least 1 each",
        ),
        ("convergence --output {0}/out --curve a 5={0}/nowhere", "neither a generation.json nor a pipeline"),
        ("convergence --output {0}/out --curve a 5={0}/pipeline", "pass --reference"),
        ("convergence --output {0}/out --curve a 5={0}/bad.json", "cannot read {0}/bad.json"),
        ("convergence --output {0}/out --baseline b --curve a 5={0}/bad.json", "--baseline 'b' is not a curve"),
        ("compare --output {0}/out", "pass either --results"),
        ("compare --output {0}/out --results {0}/nowhere {0}/empty", "{0}/nowhere does not exist"),
        ("compare --output {0}/out --config {0}/nowhere.yaml", "cannot read comparison {0}/nowhere.yaml"),
        ("cost tc-ae-f32c128 --height 250", "height 250 is not a multiple of 32"),
        ("cost nonsense", "unknown autoencoder 'nonsense'"),
        ("cost tc-ae-f32c128 --device nonsense", "--device nonsense cannot be used here: "),
        ("generate --pipeline {0}/pipeline --output {0}/out --device nonsense", "--device nonsense cannot be used"),
        (RECONSTRUCTION + "--data {0}/good --device meta", "--device meta cannot be used here: "),
        ("report --results {0}/other.json --commands {0}/good/a/0.png", "{0}/good/a/0.png is no text"),
    ],
)
def test_bad_input_is_named(place, capsys, command, message):
    assert evaluate(*command.format(place).split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ": error: " in error
    assert message.format(place) in error
    # Nothing that looks like a result is left behind, no image among them.
    assert not [file for file in (place / "out").rglob("*") if file.is_file() and file.name != "settings.json"]


def test_a_missing_extra_is_named(monkeypatch):
    from tcae_diffusers.errors import InputError
    from tcae_diffusers.metrics.features import FeatureNetwork

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'tcae-diffusers\[demo\]'"):
        FeatureNetwork("efficientnet-lite0")


def test_inception_without_weights_or_network_says_how_to_get_them(monkeypatch):
    import urllib.error

    from tcae_diffusers.errors import InputError
    from tcae_diffusers.metrics.features import FeatureNetwork

    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"weights-inception-2015-12-05-6726825d.pth .* --extractor_weights"):
        FeatureNetwork("inception")


def test_help_lists_every_command_and_each_has_its_own(capsys):
    assert evaluate("--help") == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in overview
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        page = capsys.readouterr().out
        assert page.startswith("usage: ") and f" {command} " in page.splitlines()[0]


def test_the_list_of_commands_needs_no_torch():
    code = (
        "import sys; from tcae_diffusers.evaluation.__main__ import main; main(['--help']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "guidance_sweep" in done.stdout
    assert "'torch'" not in done.stdout


def test_options_are_shown_in_groups(capsys):
    with pytest.raises(SystemExit):
        main(["generation", "--help"])
    page = capsys.readouterr().out
    groups = {part.split(":\n")[0]: part for part in page.split("\n\n") if ":\n  --" in part}
    assert list(groups) == ["Sample sets and real images", "Held-out images", "Feature network", "Speed and memory"]
    assert "--extractor " in groups["Feature network"] and "--batch_size " in groups["Speed and memory"]
    assert "--samples " in groups["Sample sets and real images"]


def test_an_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == 2
    assert "unknown command 'evaluate'" in capsys.readouterr().err


def test_json_of_others_is_passed_over_in_a_folder_whatever_it_holds(tmp_path):
    for number, content in enumerate(('{"kind": ["generation"]}', '{"kind": null}', "[1]", "NaN")):
        (tmp_path / f"{number}.json").write_text(content)
    with pytest.raises(InputError, match="no results below"):
        collect_results([tmp_path])
