"""Two processes give what one gives, with a number of images that two does not divide."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tcae_diffusers.data.images.image_sets import FolderImages
from tcae_diffusers.evaluation.__main__ import main
from tcae_diffusers.metrics.confidence import random_groups
from tcae_diffusers.metrics.frechet import frechet_distance
from tcae_diffusers.metrics.frechet_interval import frechet_interval_of_groups, group_statistics

# More images than features: moments per group are what travels between ranks.
STREAMED = """
import json, numpy as np
from accelerate import PartialState
from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.metrics.grouped_moments import StreamedFrechet
state, stream = PartialState(), StreamedFrechet(6, 103)
features = np.random.default_rng(0).normal(size=(2, 103, 6)).astype(np.float32)
indices = rank_range(103, state.process_index, state.num_processes)
stream.update(*features[:, indices], indices)
result = stream.result(state).to_json()
if state.is_main_process:
    json.dump(result, open({path!r}, "w"))
"""


def test_two_ranks_equal_one(pipeline_folder, image_folder, make_image_folder, tmp_path):
    training = make_image_folder(tmp_path / "training", 2, 131)
    # Not those of the reference: of these, distances would equal the radii of density and coverage, up to rounding.
    samples = make_image_folder(tmp_path / "samples", 4, 30)

    def commands(output):
        yield ["generate", "--pipeline", str(pipeline_folder), "--output", str(output / "drawn")] + [
            *("--num_images", "7", "--num_inference_steps", "2", "--batch_size", "2", "--device", "cpu")
        ]
        yield ["reconstruction", "--autoencoder", str(pipeline_folder), "--data", str(image_folder)] + [
            *("--output", str(output), "--max_images", "13", "--batch_size", "4", "--device", "cpu"),
            *("--baseline_data", str(training)),
        ]
        yield ["generation", "--samples", str(samples), "--reference", str(image_folder), "--device", "cpu"] + [
            *("--no_feature_cache", "--output", str(output), "--heldout", str(training)),
            *("--fdr_networks", "efficientnet-lite0"),
        ]
        common = [
            "--autoencoder",
            str(pipeline_folder),
            "--device",
            "cpu",
            "--batch_size",
            "4",
            "--output",
            str(output),
        ]
        yield ["latents", "--data", str(image_folder), "--max_images", "13", "--extractor", "none", *common]
        yield ["probing", "--train", str(training), "--test", str(image_folder), "--epochs", "2", *common]
        yield ["decoders", "--pipeline", str(pipeline_folder), "--decoders", f"same={pipeline_folder}"] + [
            *("--reference", str(image_folder), "--num_images", "9", "--num_inference_steps", "2"),
            *("--batch_size", "2", "--device", "cpu", "--no_feature_cache", "--output", str(output / "decoders")),
        ]

    for command in commands(tmp_path / "one"):
        assert main(command) == 0
    # One start of two processes serves all commands: importing torch and diffusers is most of the time.
    script = tmp_path / "both.py"
    lines = [f"assert main({command!r}) == 0" for command in commands(tmp_path / "two")]
    lines.append(STREAMED.format(path=str(tmp_path / "streamed.json")))
    script.write_text("\n".join(["from tcae_diffusers.evaluation.__main__ import main", *lines]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    features = np.random.default_rng(0).normal(size=(2, 103, 6)).astype(np.float32)
    groups = random_groups(103)
    sides = [group_statistics(side, groups) for side in features]
    streamed = json.loads((tmp_path / "streamed.json").read_text())
    assert streamed["value"] == pytest.approx(frechet_distance(*features), rel=1e-9)
    assert streamed["interval"] == pytest.approx(frechet_interval_of_groups(*sides), rel=1e-9)

    drawn = [FolderImages(tmp_path / which / "drawn") for which in ("one", "two")]
    assert len(drawn[1]) == 7
    for index in range(7):
        assert np.abs(drawn[0][index].astype(int) - drawn[1][index]).max() <= 1
    for name in ("pipeline", "same"):
        ours, theirs = (FolderImages(tmp_path / which / "decoders" / "samples" / name) for which in ("one", "two"))
        assert len(theirs) == 9
        assert all(np.abs(ours[index].astype(int) - theirs[index]).max() <= 1 for index in range(9))
    kinds = ("reconstruction", "generation", "latents", "probing", "decoders/generation")
    one, two = (
        [json.loads((tmp_path / which / f"{kind}.json").read_text()) for kind in kinds] for which in ("one", "two")
    )
    assert (one[0]["settings"]["ranks"], two[0]["settings"]["ranks"]) == (1, 2)
    pairs = [(one[kind], two[kind]) for kind in (0, 2, 3)]
    pairs += [(one[1]["sets"][0], two[1]["sets"][0]), (one[4]["sets"][0], two[4]["sets"][0])]
    for first, second in pairs:
        assert first["figures"]
        for ours, theirs in zip(first["figures"], second["figures"], strict=True):
            assert (ours["name"], ours["samples"]) == (theirs["name"], theirs["samples"])
            assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4, abs=1e-5), ours["name"]
            # Of intervals, a jackknife or a bootstrap sees rounding more.
            intervals = ours.get("interval"), theirs.get("interval")
            assert intervals == (None, None) or intervals[0] == pytest.approx(intervals[1], rel=1e-2, abs=1e-4)
    for ours, theirs in zip(one[0]["figures"], two[0]["figures"], strict=True):
        assert ours["linear"]["value"] == pytest.approx(theirs["linear"]["value"], rel=1e-4, abs=1e-5)
