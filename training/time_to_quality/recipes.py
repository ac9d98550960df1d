"""What is compared: a preset of train_tcae, and what is changed in it and in the DiT that follows."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_origin, get_type_hints

from tcae_diffusers.arguments import Arguments, ArgumentsType, parse_arguments
from tcae_diffusers.errors import InputError
from tcae_diffusers.training.bench_arguments import TimeToQualityArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

# The benchmark decides these for all recipes alike.
_DECIDED = {
    *("config", "output_dir", "resume", "seed", "heldout_steps", "heldout_images", "dataloader_num_workers"),
    *("report_to", "checkpointing_steps", "latents", "tokenizer", "gfd_steps", "gfd_samples", "gfd_reference"),
}
# Only a comma that begins another KEY=VALUE separates: lists in JSON have commas too.
_SEPARATOR = re.compile(r",(?=[A-Za-z_][\w.]*=)")
# As many steps as no run has.
_NEVER = str(10**9)


@dataclass
class Recipe:
    """
    Args:
        name (`str`): Of its row and files.
        config (`str`): Preset or YAML file of train_tcae.
        overrides, dit_overrides (`dict[str, str]`): Options of train_tcae and train_dit that it changes.
        first_overrides (`dict[str, str]`): Options that a run before changes, whose model the tokenizer starts from;
            none if empty.
    """

    name: str
    config: str
    overrides: dict[str, str] = field(default_factory=dict)
    dit_overrides: dict[str, str] = field(default_factory=dict)
    first_overrides: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """
        Read `NAME=CONFIG[,KEY=VALUE...]`.

        Raises:
            InputError: for another form, a name that is no file name, or an option that the benchmark decides.
        """
        name, separator, rest = text.partition("=")
        config, *changes = _SEPARATOR.split(rest)
        if not separator or not config or not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(
                f"--recipe {text}: expected NAME=CONFIG[,KEY=VALUE...], with a name of letters, digits and _.+-"
            )
        recipe = cls(name, config)
        for change in changes:
            key, _, value = change.partition("=")
            group = next((group for group in recipe._groups if group and key.startswith(group)), "")
            key = key.removeprefix(group)
            if key in _DECIDED:
                raise InputError(f"--recipe {name}: {key} is decided by the benchmark; omit it")
            recipe._groups[group][key] = value
        if recipe.first_overrides and "autoencoder" in recipe.overrides:
            raise InputError(
                f"--recipe {name}: the tokenizer starts from the model of the first run; omit autoencoder, or first.*"
            )
        return recipe

    @property
    def _groups(self) -> dict[str, dict[str, str]]:
        """What is changed, by the beginning of its keys."""
        return {"": self.overrides, "first.": self.first_overrides, "dit.": self.dit_overrides}

    def text(self) -> str:
        """Inverse of [`parse`]."""
        changes = [
            f"{group}{key}={value}" for group, changed in self._groups.items() for key, value in changed.items()
        ]
        return ",".join([f"{self.name}={self.config}", *changes])

    def tokenizer_options(self, first: bool = False) -> list[str]:
        """Command line of train_tcae, or of the first of two runs, without what the benchmark decides."""
        overrides = self.first_overrides if first else self.overrides
        return ["--config", self.config, *_options(overrides, TokenizerArguments)]

    def dit_options(self, config: str) -> list[str]:
        """Command line of train_dit, without what the benchmark decides."""
        return ["--config", config, *_options(self.dit_overrides, DiTArguments)]


def _options(overrides: dict[str, str], arguments_type: type[Arguments]) -> list[str]:
    hints = get_type_hints(arguments_type)
    argv = []
    for key, value in overrides.items():
        of_list = get_origin(hints.get(key)) in (list, tuple)
        argv += [f"--{key}", *(shlex.split(value) if of_list else [value])]
    return argv


def tokenizer_runs(
    recipe: Recipe, arguments: TimeToQualityArguments, seed: int, folder: str
) -> dict[str, TokenizerArguments]:
    """
    Arguments of each run of train_tcae, in order, by the folder in `folder` that it writes; the last is `tokenizer`.
    Held-out checks look at all held-out images. Exits for what train_tcae refuses.
    """
    if not recipe.first_overrides:
        return {"tokenizer": _tokenizer_arguments(recipe, arguments, seed, f"{folder}/tokenizer")}
    first = f"{folder}/first"
    return {
        "first": _tokenizer_arguments(recipe, arguments, seed, first),
        "tokenizer": _tokenizer_arguments(recipe, arguments, seed, f"{folder}/tokenizer", f"{first}/model"),
    }


def _tokenizer_arguments(
    recipe: Recipe, arguments: TimeToQualityArguments, seed: int, output_dir: str, first_model: str | None = None
) -> TokenizerArguments:
    """Of a recipe with two runs the second, which starts from `first_model`, or the first without one."""
    first = bool(recipe.first_overrides) and first_model is None
    decided = {
        **({} if first_model is None else {"autoencoder": first_model}),
        "output_dir": output_dir,
        "seed": seed,
        "heldout_steps": arguments.check_steps,
        "heldout_images": _NEVER,
    }
    return _parse(TokenizerArguments, recipe.tokenizer_options(first), decided)


def dit_arguments(
    recipe: Recipe, arguments: TimeToQualityArguments, seed: int, folders: dict[str, str]
) -> DiTArguments:
    """
    Arguments of train_dit, with a Fréchet distance at every check and no pictures on the way. Exits for what train_dit
    refuses.

    Args:
        folders (`dict[str, str]`): `latents`, `tokenizer` and `output_dir`.
    """
    decided = {
        **folders,
        "seed": seed,
        "gfd_steps": arguments.check_steps,
        "gfd_samples": arguments.gfd_samples,
        "gfd_reference": arguments.gfd_reference,
        "sample_steps": _NEVER,
    }
    return _parse(DiTArguments, recipe.dit_options(arguments.dit_config), decided)


def _parse(arguments_type: type[ArgumentsType], options: list[str], decided: Mapping[str, object]) -> ArgumentsType:
    decided = {**decided, "dataloader_num_workers": 0, "report_to": "none", "checkpointing_steps": _NEVER}
    argv = [*options, *(word for name, value in decided.items() for word in (f"--{name}", str(value)))]
    return parse_arguments(arguments_type, argv)


def parse_recipes(arguments: TimeToQualityArguments) -> list[Recipe]:
    """
    The recipes, each with options that its commands accept.

    Raises:
        InputError: see [`Recipe.parse`]; two of one name, or recipes that are measured on different held-out images.
    """
    recipes = [Recipe.parse(text) for text in arguments.recipe]
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--recipe: {', '.join(twice)} is given twice; choose different names")
    measured_on = {}
    for recipe in recipes:
        runs = tokenizer_runs(recipe, arguments, 0, "unused")
        resolved = runs["tokenizer"]
        if resolved.heldout_data is None:
            raise InputError(f"--recipe {recipe.name}: {recipe.config} has no heldout_data; add heldout_data=SOURCE")
        for name in ("train_data", "heldout_data"):
            before, after = (getattr(run, name) for run in (next(iter(runs.values())), resolved))
            if before != after:
                raise InputError(f"--recipe {recipe.name}: first.{name} is {before}, and {name} {after}; use the same")
        measured_on[recipe.name] = resolved.heldout_data
        if arguments.gfd is not None:
            dit_arguments(recipe, arguments, 0, dict.fromkeys(("latents", "tokenizer", "output_dir"), "unused"))
    if len(set(measured_on.values())) > 1:
        found = ", ".join(f"{name}: {data}" for name, data in measured_on.items())
        raise InputError(f"--recipe: times are comparable on the same heldout_data only, found {found}")
    return recipes
