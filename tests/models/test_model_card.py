"""Model cards: written from the config and the evaluation, pushed with the weights, never over somebody's own text."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from tcae_diffusers.evaluation.autoencoder_access import model_fingerprint
from tcae_diffusers.models import AutoencoderTC, model_card
from tcae_diffusers.models.model_card import autoencoder_model_card, push_to_hub


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
    with pytest.raises(FileNotFoundError, match="missing"):
        autoencoder_model_card(tiny_tcae, "someone/tiny", tmp_path / "missing")


@pytest.mark.parametrize(
    ("existing", "is_written"),
    [(None, True), (f"{model_card.GENERATED}\n\n# Old figures", True), ("# My own words", False)],
)
def test_pushing_uploads_weights_and_card(tiny_tcae, evaluation, tmp_path, monkeypatch, existing, is_written):
    def load(repo_id, token=None):
        if existing is None:
            raise EntryNotFoundError("no README.md")
        return ModelCard(f"---\nlicense: mit\n---\n\n{existing}")

    def upload(self, folder, repo_id, **arguments):
        AutoencoderTC.from_pretrained(folder, variant="ema").save_pretrained(tmp_path / "uploaded")
        readme = tmp_path / "uploaded" / "README.md"
        if (source := tmp_path.__class__(folder) / "README.md").is_file():
            readme.write_text(source.read_text())
        assert (repo_id, arguments["create_pr"]) == ("someone/tiny", True)
        return "address of the commit"

    monkeypatch.setattr(model_card, "create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=f"someone/{repo_id}"))
    monkeypatch.setattr(ModelCard, "load", load)
    monkeypatch.setattr(AutoencoderTC, "_upload_folder", upload)
    assert push_to_hub(tiny_tcae, "tiny", evaluation, create_pr=True, variant="ema") == "address of the commit"
    uploaded = AutoencoderTC.from_pretrained(tmp_path / "uploaded")
    assert torch.equal(uploaded.latent_mean, tiny_tcae.latent_mean)
    readme = tmp_path / "uploaded" / "README.md"
    assert readme.is_file() is is_written
    if is_written:
        assert "21.23" in readme.read_text()
