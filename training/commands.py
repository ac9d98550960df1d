"""The training commands: each reads its options, and only then imports what does the work, which takes seconds."""

from collections.abc import Sequence

from tcae_diffusers.command import start_command
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments


def train_tcae(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(TokenizerArguments, argv)
    from tcae_diffusers.training.train_tcae import run

    run(arguments)


def finetune_decoder(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(DecoderArguments, argv)
    from tcae_diffusers.training.finetune_decoder import run

    run(arguments)


def cache_latents(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(CacheArguments, argv)
    from tcae_diffusers.training.cache_latents import run

    run(arguments)


def train_dit(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(DiTArguments, argv)
    from tcae_diffusers.training.train_dit import run

    run(arguments)
