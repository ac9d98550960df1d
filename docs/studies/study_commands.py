"""What the studies share: their steps are commands of this package, and a step whose result is there is skipped."""

import math
import shlex
import subprocess
import sys
from pathlib import Path


def command(module: str, *arguments: object, result: Path) -> None:
    """
    Run a command of the package, unless its result is there. Exits if that was made with other options, which are
    noted beside it: the study would show its figures as those of these.
    """
    argv = ["-m", f"tcae_diffusers.{module}", *map(str, arguments)]
    text, note = shlex.join(["python", *argv]), result.with_name(f".{result.name}.command")
    before = note.read_text() if note.exists() else text
    if result.exists() and before != text:
        sys.exit(
            f"{result} belongs to another command, {before}; choose another --output_dir, or delete {result.parent}"
        )
    if result.exists():
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(text)
    print(text, flush=True)
    subprocess.run([sys.executable, *argv], check=True)
    if not result.exists():
        sys.exit(f"interrupted; run the study again to go on ({result} is not there yet)")


def slug(name: str) -> str:
    """A name as the name of a file."""
    return name.lower().replace(" + ", "_").replace(" ", "_")


def gather_grids(grids: dict[str, Path], path: Path) -> None:
    """Write several pictures as one, two in a row, each under its name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = math.ceil(len(grids) / 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(10, 4.7 * rows), layout="constrained", squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for panel, (name, grid) in zip(axes.flat, grids.items(), strict=False):
        panel.imshow(pyplot.imread(grid))
        panel.set_title(name)
    figure.savefig(path, dpi=90)
