"""The training commands: each reads its options, and only then imports what does the work, which takes seconds."""

import importlib
from collections.abc import Sequence

from tcae_diffusers.arguments import Arguments
from tcae_diffusers.command import start_command
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments


def train_tcae(argv: Sequence[str] | None = None) -> None:
    _run("train_tcae", TokenizerArguments, argv)


def finetune_decoder(argv: Sequence[str] | None = None) -> None:
    _run("finetune_decoder", DecoderArguments, argv)


def cache_latents(argv: Sequence[str] | None = None) -> None:
    _run("cache_latents", CacheArguments, argv)


def train_dit(argv: Sequence[str] | None = None) -> None:
    _run("train_dit", DiTArguments, argv)


def _run(script: str, arguments_type: type[Arguments], argv: Sequence[str] | None) -> None:
    arguments = start_command(arguments_type, argv)
    importlib.import_module(f"tcae_diffusers.training.{script}").run(arguments)
