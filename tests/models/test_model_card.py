"""Model cards: written from the config and the evaluation, pushed with the weights, never over somebody's own text."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.models import model_card
from tcae_diffusers.models.model_card import autoencoder_model_card
from tcae_diffusers.models.model_fingerprint import model_fingerprint

from ..pipelines.loopback_hub import COMMIT, LoopbackHub


@pytest.fixture
def evaluation(tiny_tcae, tmp_path):
    """A folder with what `python -m tcae_diffusers.evaluation` writes, and a result that has no place on the card."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    result = {
        "kind": "reconstruction",
        "figures": [
            {
                "name": "PSNR (dB)",
                "value": 21.234567,
                "samples": 37,
                "better": "higher",
                "interval": 0.31,
                "baseline": {"name": "the mean image", "value": 12.3},
            },
            {"name": "rFD-efficientnet-lite0", "value": 148.0, "samples": 37, "better": "lower"},
        ],
        "autoencoder": {"class": "AutoencoderTC", **model_fingerprint(tiny_tcae)},
        "data": {"spec": "openmoji:heldout", "images": 37, "height": 32, "width": 32, "attribution": "By OpenMoji"},
        "command": "python -m tcae_diffusers.evaluation reconstruction --data openmoji:heldout",
    }
    (folder / "reconstruction.json").write_text(json.dumps(result))
    (folder / "bench.json").write_text(json.dumps({"kind": "bench"}))
    return folder


def test_the_card_says_what_the_model_is_and_how_good(tiny_tcae, evaluation):
    card = autoencoder_model_card(tiny_tcae, "someone/tiny-tcae", evaluation, license="cc-by-sa-4.0")
    ModelCard(str(card))  # the front matter parses
    assert (card.data.license, card.data.library_name, card.data.model_name) == (
        "cc-by-sa-4.0",
        "diffusers",
        "tiny-tcae",
    )
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "PSNR (dB)": 21.234567,
        "rFD-efficientnet-lite0": 148.0,
    }
    assert card.data.eval_results[0].dataset_name == "openmoji:heldout"
    for text in (
        "| Image → latent | 32×32×3 → 4×4×8 (f8c8) |",
        "| Tokens | 256 → 64 → 16 |",
        f"| Parameters | {sum(p.numel() for p in tiny_tcae.parameters()):,} |",
        "| PSNR (dB) ↑ | 21.23 ± 0.31 (the mean image: 12.3) |",
        "| rFD-efficientnet-lite0 ↓ | 148 |",
        "openmoji:heldout, 37 images of 32×32",
        "By OpenMoji",
        'AutoencoderTC.from_pretrained("someone/tiny-tcae")',
    ):
        assert text in card.content, text


def test_the_cards_example_runs(tiny_tcae, tmp_path):
    tiny_tcae.save_pretrained(tmp_path / "model")
    content = autoencoder_model_card(tiny_tcae, str(tmp_path / "model")).content
    code = content.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["reconstruction"].shape == names["images"].shape == (1, 3, 32, 32)
    assert f"# {tuple(names['latent'].shape)}" in code
    assert "Not evaluated yet." in content


def test_figures_of_other_weights_are_refused(tiny_tcae, evaluation, tmp_path):
    with torch.no_grad():
        tiny_tcae.latent_mean[0] += 1
    with pytest.raises(ValueError, match=r"reconstruction\.json was measured on weights"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", evaluation)
    with pytest.raises(ValueError, match=r"bench\.json is of kind 'bench'"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", evaluation / "bench.json")
    (evaluation / "theirs.json").write_text("{} {}")
    with pytest.raises(ValueError, match=r"theirs\.json is not a JSON result: Extra data"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", evaluation / "theirs.json")
    with pytest.raises(ValueError, match=r"reconstruction\.json was measured on weights"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", evaluation)
    with pytest.raises(FileNotFoundError, match="missing"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", tmp_path / "missing")


PUSH = """
import json, sys
from diffusers.utils import PushToHubMixin
from tcae_diffusers import AutoencoderTC

model, evaluation = AutoencoderTC.from_pretrained(sys.argv[1]), sys.argv[2]
addresses = [
    model.push_to_hub("measured", evaluation=evaluation, license="cc-by-sa-4.0", variant="ema"),
    model.push_to_hub("lab/unmeasured"),
    model.push_to_hub("lab/pipeline", subfolder="vae"),
]
PushToHubMixin.push_to_hub(model, "lab/diffusers")
assert "automatically generated" in open("hub/lab/diffusers/README.md").read()
for existing in ("ours", "diffusers", "own"):
    model.push_to_hub(f"lab/{existing}", evaluation=evaluation)
model.save_pretrained("saved", push_to_hub=True, evaluation=evaluation, max_shard_size="20KB")
model.save_pretrained("elsewhere/", push_to_hub=True, repo_id="lab/named", private=True, commit_message="Say so")
model.save_pretrained("not_pushed")

model.latent_mean[0] += 1
for name, push in (
    ("refused", lambda: model.push_to_hub("lab/refused", evaluation=evaluation)),
    ("refused_too", lambda: model.save_pretrained("refused_too", push_to_hub=True, evaluation=evaluation)),
):
    try:
        push()
    except ValueError as error:
        addresses.append(str(error))
print("RESULTS" + json.dumps(addresses))
"""


def test_pushing_writes_our_card_and_keeps_what_somebody_wrote(tiny_tcae, evaluation, tmp_path):
    """Through the Hub's protocol, in a process whose Hub is on the loopback interface."""
    tiny_tcae.save_pretrained(tmp_path / "model")
    existing = {
        "ours": f"---\nlicense: mit\n---\n\n{model_card.GENERATED}\n\n# Old figures\n",
        "own": "---\nlicense: mit\n---\n\n# My own words\n",
    }
    hub_folder = tmp_path / "hub" / "lab"
    for name, text in existing.items():
        (hub_folder / name).mkdir(parents=True)
        (hub_folder / name / "README.md").write_text(text)
    with LoopbackHub({f"lab/{name}": hub_folder / name for name in existing}, tmp_path / "hub") as hub:
        finished = subprocess.run(
            [sys.executable, "-c", PUSH, tmp_path / "model", evaluation],
            cwd=tmp_path,
            env={
                **os.environ,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(tmp_path / "hf_home"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": "hf_loopback",
            },
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    *addresses, refused, refused_too = json.loads(finished.stdout.split("RESULTS")[1])
    assert addresses[0] == f"{hub.endpoint}/lab/measured/commit/{COMMIT}"
    assert "was measured on weights" in refused and "was measured on weights" in refused_too
    assert {folder.name for folder in hub_folder.iterdir()} == {
        *existing, "diffusers", "measured", "unmeasured", "pipeline", "saved", "named",
    }  # fmt: skip

    def card(name: str) -> str:
        return (hub_folder / name / "README.md").read_text()

    for name in ("measured", "ours", "diffusers", "saved"):
        assert "| PSNR (dB) ↑ | 21.23 ± 0.31" in card(name)
        # The whole name, also where only its last part was given.
        assert f'AutoencoderTC.from_pretrained("lab/{name}")' in card(name)
    assert "license: cc-by-sa-4.0" in card("measured")
    for name in ("unmeasured", "named"):
        assert model_card.GENERATED in card(name) and "Not evaluated yet." in card(name)
    assert card("own") == existing["own"]
    assert "lab/own already has its own model card" in finished.stderr
    assert not list((hub_folder / "pipeline").rglob("README.md")) and not (tmp_path / "not_pushed/README.md").exists()

    for folder, arguments in (
        ("measured", {"variant": "ema"}),
        ("own", {}),
        ("pipeline", {"subfolder": "vae"}),
        ("saved", {}),
    ):
        pushed = AutoencoderTC.from_pretrained(hub_folder / folder, **arguments)
        assert torch.equal(pushed.latent_mean, tiny_tcae.latent_mean)
    assert len(list((hub_folder / "saved").glob("*.safetensors"))) > 1
