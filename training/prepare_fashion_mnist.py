"""Writes Fashion-MNIST as a data set: `python -m tcae_diffusers.training.prepare_fashion_mnist`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, exit_with_error, option
from tcae_diffusers.command import start_command
from tcae_diffusers.errors import InputError


@dataclass
class FashionMNISTArguments(Arguments):
    """
    Write Fashion-MNIST (MIT licence) as a data set: 60,000 images for training and 10,000 for tests, ten classes of
    equal size, 28x28 pixels with two black ones added on each side.
    """

    group: ClassVar[str] = "Fashion-MNIST"

    source: str = option(
        "zalando-datasets/fashion_mnist",
        "Where Fashion-MNIST comes from: a folder of its four IDX files, such as /usr/share/datasets/fashion-mnist of"
        " Debian's package dataset-fashion-mnist or FashionMNIST/raw of torchvision, or a name on the Hub.",
        metavar="FOLDER|NAME",
    )
    output_dir: Path = option(
        Path("runs/fashion_mnist"),
        "Folder of the data set, which datasets:FOLDER:train and datasets:FOLDER:test name from then on.",
        metavar="FOLDER",
    )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(FashionMNISTArguments, argv)
    from tcae_diffusers.data.images.fashion_mnist import SPLITS, prepare_fashion_mnist

    try:
        prepare_fashion_mnist(arguments.source, arguments.output_dir)
    except (InputError, OSError) as error:
        exit_with_error(str(error))
    for name, split in SPLITS.items():
        print(f"datasets:{arguments.output_dir}:{name}: {split.count:,} images of 32x32")


if __name__ == "__main__":
    main()
