"""The page docs/diffusion_transformers.md is true: its snippets run, and its options exist."""

import importlib
import re
import shutil
from argparse import Namespace
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.evaluation.arguments.generate import GenerateArguments
from tcae_diffusers.evaluation.commands.comparison_plan import read_plan
from tcae_diffusers.training.cache_latents import CacheArguments
from tcae_diffusers.training.train_dit import DiTArguments
from tcae_diffusers.training.train_tcae import TokenizerArguments

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
    study = (DOCS / "studies" / "compare_transformers.py").read_text(encoding="utf-8")
    commands = (CacheArguments, DiTArguments, GenerateArguments)
    known = {field.name for command in commands for field in fields(command)} | {"config"}
    # Of accelerate.
    known |= {"num_processes", "cpu", "config_file", "num_machines", "machine_rank"}
    known |= {"main_process_ip", "main_process_port"}
    known |= set(re.findall(r'add_argument\("--(\w+)"', study))
    named = set(re.findall(r"--(\w+)(?![\w-])", TEXT))
    assert len(named) > 25
    assert named <= known, named - known


def load_study(name, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "studies")
    return importlib.import_module(name)


def test_the_study_of_transformers_asks_for_options_that_exist(monkeypatch):
    study = load_study("compare_transformers", monkeypatch)
    known = {field.name for field in fields(DiTArguments)}
    for options in study.RUNS.values():
        assert {option.removeprefix("--") for option in options if option.startswith("--")} <= known
    assert {run for run, _, _ in study.SAMPLES.values()} == set(study.RUNS)


def test_the_study_of_tokenizers_differs_in_what_it_names_alone_and_writes_a_plan_that_is_read(tmp_path, monkeypatch):
    study = load_study("compare_tokenizers", monkeypatch)
    runs = {
        name: asdict(parse_arguments(TokenizerArguments, ["--config", study.PRESET, *options, "--output_dir", "run"]))
        for name, options in study.TOKENIZERS.items()
    }
    for name, run in runs.items():
        assert (run["ssl"] == "ibot") == ("SSL" in name)
        assert run["autoencoder"].endswith("-nostc") == ("STC" not in name)
        differing = {key for key, value in run.items() if value != runs["SSL + STC"][key]}
        assert differing <= {"ssl", "autoencoder"}, name
    arguments = Namespace(
        output_dir=tmp_path, dit_steps=80, train="openmoji:train", test="openmoji:heldout", num_samples=10, seed=3
    )
    plan = read_plan(study.write_plan(arguments, list(study.TOKENIZERS), tmp_path / "plan.yaml"))
    assert list(plan.tokenizers) == list(study.TOKENIZERS) and plan.seed == 3
    assert list(plan.tokenizers["plain"].pipelines) == [10, 20, 40, 80]
