# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Model cards written from what is known: the config, and the JSON that `tcae_diffusers.evaluation` wrote."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from diffusers.utils import logging
from huggingface_hub import EvalResult, ModelCard, ModelCardData, create_repo
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..files import file_names
from .model_fingerprint import model_fingerprint

logger = logging.get_logger(__name__)

# A card with this line in it is replaced by the next push; without it, it is somebody's own text and stays.
GENERATED = (
    "<!-- Written by tcae_diffusers. Remove this line to keep your own text when the model is pushed again. -->"
)

_GENERATED_BY_DIFFUSERS = "This model card has been automatically generated."

_KINDS = {"reconstruction": "Reconstruction", "probing": "Linear probe", "latents": "Latent space"}

_BODY = """{generated}

# {model_name}

A [TC-AE](https://arxiv.org/abs/2604.07340) autoencoder: a deterministic ViT tokenizer with staged token compression,
for use wherever diffusers takes a `vae`.

| | |
|---|---|
{facts}

## Use

```python
import torch
{package_import}

vae = AutoencoderTC.from_pretrained("{repo_id}").eval()
images = torch.rand(1, {in_channels}, {sample_size}, {sample_size}) * 2 - 1  # RGB in [-1, 1]
with torch.no_grad():
    latent = vae.encode(images).latent  # {latent_shape}, {normalised}
    reconstruction = vae.decode(latent).sample
```

Height and width may be any multiples of {ratio}. Larger images than one wants to process at once:
`vae.enable_tiling()`.

## Evaluation

{evaluation}
"""


def autoencoder_model_card(
    model: ModelMixin,
    repo_id: str,
    evaluation: str | os.PathLike | dict | Iterable[str | os.PathLike | dict] = (),
    license: str = "apache-2.0",
) -> ModelCard:
    """
    The model card of an autoencoder.

    Args:
        model ([`AutoencoderTC`]): What the card describes.
        repo_id (`str`): Name of the repository, for the example and the title.
        evaluation (*optional*): Results of `python -m tcae_diffusers.evaluation reconstruction`, `probing` or
            `latents`: one or more JSON files, folders that hold them, or their content.
        license (`str`, defaults to `"apache-2.0"`): Licence of the weights.

    Raises:
        ValueError: if a file is no such result, or was measured on other weights than these.
        FileNotFoundError: if a file or folder does not exist.
    """
    return _card(model, repo_id, _checked_results(model, evaluation), license)


def _card(model: ModelMixin, repo_id: str, results: list[dict], license: str) -> ModelCard:
    model_name = repo_id.split("/")[-1]
    config, ratio = model.config, model.spatial_compression_ratio
    size = config.sample_size
    normalised = bool((model.latent_std != 1).any() or (model.latent_mean != 0).any())
    data = ModelCardData(
        model_name=model_name,
        license=license,
        library_name="diffusers",
        tags=["tc-ae", "autoencoder", "image-tokenizer", "deep-compression"],
        eval_results=[entry for result in results for entry in _eval_results(result)] or None,
    )
    body = _BODY.format(
        generated=GENERATED,
        # Not a line of its own: in an export diffusers looks for lines that import, in strings too, and for what they
        # name.
        package_import="from tcae_diffusers import AutoencoderTC",
        model_name=model_name,
        repo_id=repo_id,
        in_channels=config.in_channels,
        sample_size=size,
        ratio=ratio,
        latent_shape=f"(1, {config.latent_channels}, {size // ratio}, {size // ratio})",
        normalised="unit variance per channel" if normalised else "not normalised: no statistics were set",
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(model).items()),
        evaluation="\n\n".join(map(_evaluation_section, results)) or "Not evaluated yet.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


class ModelCardMixin:
    """Pushes a model to the Hub with the card of [`autoencoder_model_card`] where diffusers writes a general one."""

    # Of `PushToHubMixin`, beside which this one stands.
    _upload_folder: Callable[..., str]

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        evaluation: str | os.PathLike | dict | Iterable[str | os.PathLike | dict] = (),
        license: str = "apache-2.0",
    ) -> str:
        """
        Upload the model and its card.

        Args:
            repo_id (`str`): Repository, made if it does not exist. A card that somebody wrote there is kept.
            evaluation, license (*optional*): See [`autoencoder_model_card`].
            commit_message, private, token, create_pr, safe_serialization, variant, subfolder (*optional*): As in
                `ModelMixin.push_to_hub`. Into a subfolder no card is written, since it is part of something else.

        Returns:
            `str`: address of the commit.

        Raises:
            ValueError: if an evaluation is not of these weights; nothing is made or uploaded then.
        """
        results = _checked_results(self, evaluation)
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            if not subfolder:
                _card_to_push(self, repo_id, results, license, token).save(os.path.join(folder, "README.md"))
            return self._upload_folder(
                folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr, subfolder=subfolder
            )

    # Pipelines read the names of these parameters to know what they may pass.
    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Save the model in a folder; with `push_to_hub=True` upload that folder with the model's card in it.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, made if it does not exist.
            push_to_hub (`bool`, defaults to `False`): Whether to upload. Then `repo_id` (defaults to the folder's
                name), `commit_message`, `private`, `token`, `create_pr`, `evaluation` and `license` are taken too, as
                in [`~ModelCardMixin.push_to_hub`].
            is_main_process, save_function, safe_serialization, variant, max_shard_size, kwargs (*optional*): As in
                `ModelMixin.save_pretrained`.
        """
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or os.path.basename(os.path.abspath(save_directory))
            token, license = kwargs.pop("token", None), kwargs.pop("license", "apache-2.0")
            commit = {
                key: kwargs.pop(key, default) for key, default in (("commit_message", None), ("create_pr", False))
            }
            results = _checked_results(self, kwargs.pop("evaluation", ()))
            repo_id = create_repo(repo_id, private=kwargs.pop("private", None), token=token, exist_ok=True).repo_id
        super().save_pretrained(  # type: ignore[misc]
            save_directory,
            is_main_process=is_main_process,
            save_function=save_function,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            **kwargs,
        )
        if push_to_hub:
            _card_to_push(self, repo_id, results, license, token).save(os.path.join(save_directory, "README.md"))
            self._upload_folder(save_directory, repo_id, token=token, **commit)


def _card_to_push(model: ModelMixin, repo_id: str, results: list[dict], license: str, token: str | None) -> ModelCard:
    """Our card, unless the repository has one that somebody wrote."""
    try:
        existing = ModelCard.load(repo_id, token=token)
    except LocalEntryNotFoundError:
        raise  # the Hub was not reached, so the card there is not known
    except EntryNotFoundError:
        existing = None
    if existing is None or any(line in existing.content for line in (GENERATED, _GENERATED_BY_DIFFUSERS)):
        return _card(model, repo_id, results, license)
    logger.warning(f"{repo_id} already has its own model card, which is kept.")
    return existing


def _facts(model: ModelMixin) -> dict[str, str]:
    config, ratio = model.config, model.spatial_compression_ratio
    size = config.sample_size
    side = size // config.patch_size
    stages = [side**2, (side // 2) ** 2] if config.staged_compression else [side**2]
    return {
        "Image → latent": f"{size}×{size}×{config.in_channels} → {size // ratio}×{size // ratio}×"
        f"{config.latent_channels} (f{ratio}c{config.latent_channels})",
        "Tokens": " → ".join(map(str, [*stages, (size // ratio) ** 2])),
        "Patch size": str(config.patch_size),
        "Staged compression": "yes" if config.staged_compression else "no",
        "Width, heads of encoder": f"{config.hidden_size}, {config.num_attention_heads}",
        "Width, heads of decoder": f"{config.decoder_hidden_size}, {config.decoder_num_attention_heads}",
        "Blocks of encoder, decoder": f"{' + '.join(map(str, config.encoder_num_layers))}, "
        f"{' + '.join(map(str, config.decoder_num_layers))}",
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }


def _read_results(evaluation: Any) -> list[tuple[str, dict]]:
    """`(where, content)` of each result."""
    if isinstance(evaluation, str | os.PathLike | dict):
        evaluation = [evaluation]
    results = []
    for entry in evaluation:
        if isinstance(entry, dict):
            results.append(("the given result", entry))
            continue
        path = Path(entry)
        files = [path / name for name in file_names(path) if name.endswith(".json")] if path.is_dir() else [path]
        if not files or not path.exists():
            raise FileNotFoundError(f"There is no evaluation result at {path}.")
        for file in files:
            try:
                content = json.loads(file.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if path.is_dir():
                    continue  # of others
                raise ValueError(f"{file} is not a JSON result: {error}") from error
            # A folder may hold other results too: of generated images, of speed.
            if path.is_file() or (isinstance(content, dict) and content.get("kind") in _KINDS):
                results.append((str(file), content))
    return results


def _checked_results(model: ModelMixin, evaluation: Any) -> list[dict]:
    return [_checked(model, *result) for result in _read_results(evaluation)]


def _checked(model: ModelMixin, where: str, result: Any) -> dict:
    kind = result.get("kind") if isinstance(result, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"{where} is of kind {kind!r}; a card can show {', '.join(_KINDS)}.")
    measured = result.get("autoencoder", {}).get("weights_sha256")
    if measured != (actual := model_fingerprint(model)["weights_sha256"]):
        raise ValueError(
            f"{where} was measured on weights {str(measured)[:12]}, and this model has {actual[:12]}; evaluate this"
            " model, or leave the result out."
        )
    return result


def _dataset_name(result: dict) -> str:
    return str(result.get("data", {}).get("spec", "unknown images"))


def _eval_results(result: dict) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=_KINDS[result["kind"]],
            dataset_type="images",
            dataset_name=_dataset_name(result),
            metric_type=figure["name"].lower().replace(" ", "-"),
            metric_name=figure["name"],
            metric_value=figure["value"],
        )
        for figure in result.get("figures", ())
    ]


def _evaluation_section(result: dict) -> str:
    data = result.get("data", {})
    images = f", {data['images']} images" if "images" in data else ""
    size = f" of {data['height']}×{data['width']}" if "height" in data else ""
    lines = [
        f"### {_KINDS[result['kind']]}: {_dataset_name(result)}{images}{size}",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    for figure in result.get("figures", ()):
        interval = f" ± {figure['interval']:.3g}" if "interval" in figure else ""
        baselines = [figure[name] for name in ("baseline", "linear") if figure.get(name)]
        beside = "".join(f" ({baseline['name']}: {baseline['value']:.4g})" for baseline in baselines)
        arrow = {"higher": " ↑", "lower": " ↓"}.get(figure.get("better"), "")
        lines.append(f"| {figure['name']}{arrow} | {figure['value']:.4g}{interval}{beside} |")
    if result.get("command"):
        lines += ["", f"Measured with `{result['command']}`."]
    if data.get("attribution"):
        lines += ["", f"Images: {data['attribution']}"]
    return "\n".join(lines)
