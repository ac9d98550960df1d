"""Entry point of all evaluation commands: `python -m tcae_diffusers.evaluation <what> ...`, also `tcae-evaluate`."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from tcae_diffusers.arguments import Arguments, program_name
from tcae_diffusers.command import start_command

from .arguments.compare import CompareArguments
from .arguments.convergence import ConvergenceArguments
from .arguments.cost import CostArguments
from .arguments.decoders import DecodersArguments
from .arguments.generate import GenerateArguments
from .arguments.generation import GenerationArguments
from .arguments.guidance_sweep import GuidanceSweepArguments
from .arguments.latents import LatentsArguments
from .arguments.probing import ProbingArguments
from .arguments.reconstruction import ReconstructionArguments
from .arguments.report import ReportArguments

# Options of each command, and what it does. The work is `run(arguments)` of the module of its name in `commands`: it
# takes seconds to import, and is imported once the options have been read.
COMMANDS: dict[str, tuple[type[Arguments], str]] = {
    "reconstruction": (
        ReconstructionArguments,
        "PSNR, SSIM and Fréchet distance of any diffusers autoencoder on images it has not seen",
    ),
    "generate": (
        GenerateArguments,
        "sample labelled images from a pipeline, or make a baseline set; resumable, on any number of ranks",
    ),
    "generation": (
        GenerationArguments,
        "Fréchet distance, KID, precision, recall (and IS) of sample sets against real images, with floors",
    ),
    "decoders": (
        DecodersArguments,
        "decoders of one latent on the same generated latents, with paired differences",
    ),
    "probing": (
        ProbingArguments,
        "linear probe and k-NN on tokens (A1) and latent (A2), structure loss 1 - A2/A1, spatial structure",
    ),
    "latents": (
        LatentsArguments,
        "properties of the latent space: channels, effective rank, equivariance, sensitivity to noise",
    ),
    "guidance_sweep": (
        GuidanceSweepArguments,
        "generate and measure at several guidance scales and intervals",
    ),
    "convergence": (
        ConvergenceArguments,
        "Fréchet distance against DiT steps for several tokenizers, and the speed-up between them",
    ),
    "compare": (
        CompareArguments,
        "several results side by side, and which differences are significant; or a complete comparison from YAML",
    ),
    "cost": (
        CostArguments,
        "multiply-accumulates and parameters of autoencoders (TC-AE 164, DC-AE 607 GMAC), without running a model",
    ),
    "report": (
        ReportArguments,
        "one HTML file with the pictures, curves and figures of other results",
    ),
}


def build_overview() -> argparse.ArgumentParser:
    """The parser of `--help`: lists the commands without importing any of them."""
    lines = "\n".join(f"  {name:15} {description}" for name, (_, description) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog=program_name(),
        description="Measure autoencoders and the diffusion models trained on their latents.",
        usage="%(prog)s COMMAND [options]",
        epilog=f"commands:\n{lines}\n\n'%(prog)s COMMAND --help' explains one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, stores its result and prints what it found.

    Returns:
        0 on success, 130 after Ctrl-C.

    Raises:
        SystemExit: With code 2 on bad input, after one line that names it (see [`user_errors`]).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path may hold bytes that are no text, and a terminal may not know "±": neither is worth a result.
            stream.reconfigure(errors="backslashreplace")
    overview = build_overview()
    if not argv or argv[0] in ("-h", "--help"):
        overview.print_help()
        return 0 if argv else 2
    command = argv.pop(0)
    if command not in COMMANDS:
        overview.error(f"unknown command {command!r}; expected one of {', '.join(COMMANDS)}")
    arguments_type, _ = COMMANDS[command]
    arguments = start_command(arguments_type, argv, f"{program_name()} {command}")
    from accelerate import PartialState

    from tcae_diffusers.evaluation.results.reading import refuse_other_json
    from tcae_diffusers.trainer.user_errors import exit_on_user_error

    run = importlib.import_module(f"tcae_diffusers.evaluation.commands.{command}").run
    try:
        with exit_on_user_error():
            # Every command has the option.
            output = vars(arguments)["output"]
            refuse_other_json(output)
            result = run(arguments)
            if PartialState().is_main_process:
                if output is not None:
                    result.save(output)
                print("\n".join(result.describe()))
    except KeyboardInterrupt:
        print(
            "interrupted; everything written so far is complete, run the same command again to resume", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
