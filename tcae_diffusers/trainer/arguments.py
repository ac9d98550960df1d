"""Arguments of the training scripts: one dataclass each, read from a YAML preset first and the command line second."""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from transformers import HfArgumentParser

ArgumentsType = TypeVar("ArgumentsType", bound="RunArguments")


def option(default: Any, help: str, **kwargs: Any) -> Any:
    """A dataclass field with a default and the text that `--help` shows."""
    if default is MISSING and not kwargs:
        return field(metadata={"help": help})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class RunArguments:
    """What every training run has."""

    output_dir: str = option(MISSING, "Folder of the run: checkpoints/, logs/, arguments.yaml and the final model/.")
    resume: str | None = option(
        None, "'latest' continues the newest whole checkpoint of output_dir, or starts if there is none; or a path."
    )
    seed: int = option(0, "All randomness is a function of this seed, the step and the sample.")
    max_train_steps: int = option(100_000, "Optimizer steps.")
    train_batch_size: int = option(16, "Images per process and forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.")
    dataloader_num_workers: int = option(
        0, "Processes that decode and crop images; 0 does it in the training process."
    )
    learning_rate: float = option(5e-4, "Peak learning rate (at a batch of 256 if --scale_lr).")
    scale_lr: bool = option(False, "Multiply the learning rate by total batch / 256.")
    lr_warmup_fraction: float = option(0.1, "Share of the steps over which the learning rate rises linearly.")
    final_learning_rate: float = option(1e-6, "Learning rate at the last step of the cosine schedule.")
    adam_beta1: float = option(0.9, "First moment decay of AdamW.")
    adam_beta2: float = option(0.95, "Second moment decay of AdamW.")
    adam_epsilon: float = option(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = option(3.0, "Gradients are clipped to this norm.")
    ema_decay: float = option(0.9999, "Decay of the averaged weights; reached gradually, min(decay, (1+n)/(10+n)).")
    max_nonfinite_steps: int = option(20, "Stop after this many skipped steps in a row (loss or gradient not finite).")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "Autocast type; bf16 is slower than fp32 on CPUs.")
    log_steps: int = option(20, "Steps between two log lines and tracker entries.")
    checkpointing_steps: int = option(1000, "Steps between two checkpoints.")
    checkpoints_total_limit: int = option(2, "Checkpoints kept; older ones go once a newer one is whole.")
    report_to: str = option("tensorboard", "Tracker known to accelerate (tensorboard, wandb, trackio), or none.")

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "log_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("checkpointing_steps", "checkpoints_total_limit", "max_nonfinite_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2**32")
        self._require("dataloader_num_workers", self.dataloader_num_workers >= 0, "0 or more")
        self._require("lr_warmup_fraction", 0 <= self.lr_warmup_fraction <= 1, "between 0 and 1")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self._require("learning_rate", self.learning_rate > 0, "positive")

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(f"--{name} {getattr(self, name)} must be {expected}.")

    def peak_learning_rate(self, total_batch_size: int) -> float:
        return self.learning_rate * total_batch_size / 256 if self.scale_lr else self.learning_rate


def parse_arguments(arguments_type: type[ArgumentsType], argv: Sequence[str] | None = None) -> ArgumentsType:
    """
    Read `--config` (a YAML file, or the name of a preset that ships with the package), then the command line, which
    wins. A config may name another one that it changes: `extends: openmoji32`.

    Exits with code 2 and a message, as argparse does, for an unknown preset, an unknown key or a bad value.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(arguments_type, description=arguments_type.__doc__, allow_abbrev=False)
    # The message alone: the usage of a hundred options before it would hide it.
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    for action in parser._actions:
        if action.type is dict:
            action.type = _json_object
    parser.add_argument("--config", help="YAML file, or name of a preset: " + ", ".join(_preset_names()))
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config")
    config = config_parser.parse_known_args(argv)[0].config
    try:
        if config is not None:
            values = _read_config(config, {f.name for f in fields(arguments_type)})
            for action in parser._actions:
                if action.dest in values:
                    action.required = False
            parser.set_defaults(**values)
        namespace, unknown = parser.parse_known_args(argv)
        if unknown:
            names = [f"--{f.name}" for f in fields(arguments_type)]
            raise ValueError(f"unknown argument {unknown[0]}{_near(unknown[0].split('=')[0], names)}")
        values = {key: value for key, value in vars(namespace).items() if key != "config"}
        for action in parser._actions:
            # argparse checks the choices of what is typed, not of defaults, which a config sets.
            value = values.get(action.dest)
            if action.choices and value is not None and value not in action.choices:
                expected = ", ".join(map(str, action.choices))
                raise ValueError(f"{action.dest}: {value!r} is unknown; expected one of {expected}")
        arguments = arguments_type(**values)
        _check_types(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return arguments


def save_arguments(arguments: RunArguments, path: Path) -> None:
    """Write the resolved arguments as a YAML file that `--config` reads again."""
    path.write_text(yaml.safe_dump(asdict(arguments), sort_keys=False))


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object; expected {{"key": value}}')
    return value


def _preset_names() -> list[str]:
    folder = resources.files("tcae_diffusers.training.configs")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read_config(config: str, known: set[str], extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Values of a YAML file or preset, over those of the one that its key `extends` names."""
    if config in extended_by:
        raise ValueError(f"--config {config} extends itself: {' -> '.join((*extended_by, config))}")
    if Path(config).is_file():
        text = Path(config).read_text()
    elif config in _preset_names():
        text = (resources.files("tcae_diffusers.training.configs") / f"{config}.yaml").read_text()
    else:
        raise ValueError(f"--config {config}: no such file, and no such preset{_near(config, _preset_names())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {config} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {config}: expected `key: value` lines, found {type(values).__name__}")
    base = values.pop("extends", None)
    for key in values:
        if key not in known:
            raise ValueError(f"--config {config}: unknown key {key!r}{_near(key, sorted(known))}")
    return values if base is None else {**_read_config(str(base), known, (*extended_by, config)), **values}


def _near(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(str(name), known, n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else f"; known: {', '.join(known)}"


def _check_types(arguments: RunArguments) -> None:
    """YAML values do not pass through argparse's types: `1e-4` is text to YAML 1.1, `0.5` a wrong step count."""
    for f in fields(arguments):
        value = getattr(arguments, f.name)
        # HfArgumentParser rewrites the type `int | None` of a field to `int`, so None is judged by the default.
        if value is None and f.default is None:
            continue
        if f.type is float and isinstance(value, int) and not isinstance(value, bool):
            setattr(arguments, f.name, float(value))
        elif f.type is float and isinstance(value, str):
            try:
                setattr(arguments, f.name, float(value))
            except ValueError:
                raise ValueError(f"{f.name}: {value!r} is not a number") from None
        elif f.type in (int, float, bool, str, dict) and (
            not isinstance(value, f.type) or (f.type is int and isinstance(value, bool))
        ):
            raise ValueError(f"{f.name}: {value!r} is a {type(value).__name__}, expected {f.type.__name__}")
