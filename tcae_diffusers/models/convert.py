"""The command that converts foreign checkpoints: `python -m tcae_diffusers.models.convert`, see [`conversion`]."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from ..arguments import Arguments, exit_with_error, option
from ..command import start_command


@dataclass
class ConversionArguments(Arguments):
    """
    Convert a checkpoint of another codebase to an AutoencoderTC.

    The key map is a JSON object of regular expressions, each mapped to what matching keys become: another key, a
    list of keys for equal parts along the first dimension, or null to drop the tensor. See the example in
    tcae_diffusers/models/conversion.py.
    """

    group: ClassVar[str] = "Conversion"

    checkpoint: str = option(MISSING, "File to convert, safetensors or PyTorch.", positional=True)
    output: str = option(MISSING, "Folder to save the model to.", positional=True)
    config: str = option(MISSING, "Name of a preset, or a config.json or its folder.", metavar="CONFIG")
    key_map: Path = option(
        MISSING, "JSON file that maps the checkpoint's keys to those of AutoencoderTC.", metavar="FILE"
    )
    state_dict_key: str | None = option(
        None,
        'Location of the weights in a nested checkpoint, such as "model.ema"; its top level if unset.',
        metavar="KEY",
    )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(ConversionArguments, argv)
    from .conversion import convert_checkpoint, read_json

    try:
        key_map = read_json(arguments.key_map, "--key_map")
        model = convert_checkpoint(arguments.checkpoint, arguments.config, key_map, arguments.state_dict_key)
        model.save_pretrained(arguments.output)
    except (ValueError, OSError) as error:
        exit_with_error(str(error))


if __name__ == "__main__":
    main()
