"""The page docs/diffusion_transformers.md is true: its snippets run, and its options exist."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from tcae_diffusers.evaluation.arguments.generate import GenerateArguments
from tcae_diffusers.training.cache_latents import CacheArguments
from tcae_diffusers.training.train_dit import DiTArguments

from ..latent_commands import calibrated, train

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "diffusion_transformers.md").read_text(encoding="utf-8")


def test_every_snippet_runs_in_order(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    tokenizer, latents = calibrated()
    (tmp_path / "runs" / "tokenizer").mkdir(parents=True)
    shutil.copytree(tokenizer, tmp_path / "runs" / "tokenizer" / "model")
    shutil.copytree(latents, tmp_path / "runs" / "latents")
    train(tmp_path / "runs" / "dit", posthoc_ema_sigmas=[0.05, 0.1], posthoc_ema_steps=3)
    train(tmp_path / "runs" / "dit_epsilon", objective="epsilon", transformer="tc-dit")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    snippets = list(re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL))
    assert len(snippets) == 6
    for snippet in snippets:
        # Keeps the page's line numbers in tracebacks.
        line = TEXT.count("\n", 0, snippet.start(1))
        exec(compile("\n" * line + snippet[1], "diffusion_transformers.md", "exec"), namespace)
    assert len(namespace["images"]) == 2


def test_every_option_exists():
    commands = (CacheArguments, DiTArguments, GenerateArguments)
    known = {field.name for command in commands for field in fields(command)} | {"config"}
    # Of accelerate.
    known |= {"num_processes", "cpu", "config_file", "num_machines", "machine_rank"}
    known |= {"main_process_ip", "main_process_port"}
    named = set(re.findall(r"--(\w+)(?![\w-])", TEXT))
    assert len(named) > 25
    assert named <= known, named - known
