"""What `accelerate launch` makes of the configurations that ship with the package, without launching anything."""

from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parents[1] / "training" / "configs" / "accelerate"


def launch_arguments(name, **options):
    """Arguments of `accelerate launch --config_file <name>.yaml`, the file's values among them."""
    argv = ["--config_file", str(FOLDER / f"{name}.yaml")]
    argv += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*argv, "train_dit.py"]))
    return arguments


def launch_environment(name, **options) -> dict[str, str]:
    """The variables by which that launcher tells each process how to shard."""
    environment = prepare_multi_gpu_env(launch_arguments(name, main_process_port=0, **options))
    return {key: value for key, value in environment.items() if key.startswith(("FSDP_", "ACCELERATE_USE_"))}
