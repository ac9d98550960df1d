"""The page docs/train_your_own.md is true: its options and presets exist, its snippets run."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.training.finetune_decoder import DecoderArguments
from tcae_diffusers.training.train_tcae import TokenizerArguments

from ..tokenizer_commands import trained_tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "train_your_own.md").read_text(encoding="utf-8")
SCRIPTS = {"train_tcae.py": TokenizerArguments, "finetune_decoder.py": DecoderArguments}
# Of other commands on the page.
FOREIGN = {"--logdir", "--data", "--baseline_data", "--output", "--num_machines", "--num_processes", "--machine_rank"}
FOREIGN |= {"--source", "--main_process_ip", "--main_process_port", "--config", "--config_file"}


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands():
    for block in blocks(""):
        words = shlex.split(block.replace("\\\n", " "))
        for script, arguments_type in SCRIPTS.items():
            if f"training/{script}" in words:
                yield pytest.param(arguments_type, words[words.index(f"training/{script}") + 1 :], id=script)


@pytest.mark.parametrize(("arguments_type", "argv"), list(commands()))
def test_commands_are_understood(arguments_type, argv):
    parse_arguments(arguments_type, argv)


def test_there_are_commands_for_both_scripts():
    assert len(list(commands())) >= 4


def test_every_option_and_preset_that_the_text_names_exists():
    known = {f"--{field.name}" for arguments_type in SCRIPTS.values() for field in fields(arguments_type)} | FOREIGN
    named = set(re.findall(r"--[a-z][a-z0-9_]+", TEXT))
    assert named - known == set()
    presets = {file.stem for file in (Path(__file__).parents[2] / "training" / "configs").glob("*.yaml")}
    assert {name for name in re.findall(r"`((?:openmoji|tc_ae)\w+)`", TEXT)} <= presets


def test_the_example_of_an_own_preset_is_read(tmp_path):
    example = blocks("yaml")[0]
    assert yaml.safe_load(example)["extends"]
    (tmp_path / "mine.yaml").write_text(example)
    argv = ["--config", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "run")]
    assert parse_arguments(TokenizerArguments, argv).autoencoder_overrides == {"patch_size": 16}


def test_snippets_run(tmp_path, monkeypatch):
    (tmp_path / "runs" / "tokenizer").mkdir(parents=True)
    (tmp_path / "runs" / "tokenizer" / "model").symlink_to(trained_tokenizer())
    monkeypatch.chdir(tmp_path)
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        exec(snippet, {"__name__": "page"})
    assert (tmp_path / "my-tokenizer" / "config.json").exists()
