"""A study as one YAML file: its arms and seeds, and what they have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from tcae_diffusers.arguments import read_fields, read_yaml
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.commands.comparison_plan import folder_name

# The study decides these for all arms alike.
DECIDED = {
    "tokenizer": ("output_dir", "resume", "seed", "train_data", "heldout_data"),
    "latents": ("output_dir", "tokenizer", "data", "seed"),
    "dit": ("output_dir", "resume", "seed", "latents", "tokenizer", "max_train_steps", "pipeline_steps"),
    "measures": ("tokenizers", "seed", "test"),
}
# Sections of commands that train.
TRAINING = ("tokenizer", "latents", "dit")
# What a plan that extends another says itself. It has the seeds of the other unless it says otherwise.
OWN = ("extends", "title", "arms", "claims", "seeds", "looks")


@dataclass
class Arm:
    """
    What one arm changes.

    Args:
        like (`str`, *optional*): Another arm, whose changes it has too.
        equal_macs_to (`str`, *optional*): The arm whose tokenizer takes as many multiply-accumulates to train: as many
            steps as that allows replace `max_train_steps`. DiTs are trained for equally many steps in all arms.
        tokenizer, dit (`dict`): Options of train_tcae and train_dit.
        shared (`bool`): The arm of this name in the plan that this one extends, which is run there, with its records.
    """

    like: str | None = None
    equal_macs_to: str | None = None
    tokenizer: dict = field(default_factory=dict)
    dit: dict = field(default_factory=dict)
    shared: bool = False


@dataclass
class Claim:
    """
    What the study is to decide: that `arm` has a lower or a higher `measure` than another.

    Args:
        paper (`str`): Where the paper says so, with its figures.
        arm, than (`str`): The arms.
        measure (`str`): Name of a figure in the records.
        direction (`str`): `"lower"` or `"higher"`.
        after (`int`, *optional*): Steps of the DiT whose samples are meant; omitted for figures of the tokenizer.
    """

    paper: str
    arm: str
    than: str
    measure: str
    direction: Literal["lower", "higher"]
    after: int | None = None


@dataclass
class StudyPlan:
    """
    The content of a plan file.

    Args:
        title: Of the study.
        train, test: Data that tokenizers and DiTs are trained on, and data that they are measured on.
        seeds: One run of each arm for each; tokenizer, DiT and samples have the same.
        measured_after: Steps of the DiT after which its samples are measured; it is trained up to the last.
        tokenizer, latents, dit: Options of train_tcae, cache_latents and train_dit for all arms; presets are named by
            `extends`, as in any configuration.
        measures: Keys of a comparison file, see `evaluation compare`; `train` fits the probes and the linear baseline.
        arms: `{name: Arm}`; the first is what the others are compared with.
        claims: `{statement: Claim}`, the family that is judged together, see [`claims`].
        looks: How many times the claims are judged: 1, and one more whenever seeds are added by someone who knows the
            verdicts. The chance of a false claim is divided among the times (Bonferroni).
        extends: File of another plan, relative to this one, whose keys this one has, except for title, arms, claims
            and looks, and for seeds if it gives any.
        path: Of the file. base: The plan that this one extends.
    """

    title: str
    train: str
    test: str
    seeds: list[int]
    measured_after: list[int]
    arms: dict[str, Any]
    tokenizer: dict = field(default_factory=dict)
    latents: dict = field(default_factory=dict)
    dit: dict = field(default_factory=dict)
    measures: dict = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    looks: int = 1
    extends: str | None = None
    path: Path = field(init=False)
    base: StudyPlan | None = field(init=False, default=None)

    @property
    def records(self) -> Path:
        """Folder of the records of the arms that are this plan's own."""
        return self.path.parent / "results"

    def owner(self, arm: str) -> StudyPlan:
        """The plan that runs an arm, and has its records: this one, unless the arm is shared."""
        return self.base.owner(arm) if self.base is not None and self.arms[arm].shared else self

    def arm(self, name: str) -> Arm:
        """The arm with what it takes from the one that it is `like`."""
        arm: Arm = self.arms[name]
        if self.base is not None and arm.shared:
            return self.base.arm(name)
        if arm.like is None:
            return arm
        base = self.arm(arm.like)
        equal_macs_to = arm.equal_macs_to
        # What a shared arm is equal to is an arm of another plan.
        if "max_train_steps" not in arm.tokenizer and not self.arms[arm.like].shared:
            equal_macs_to = equal_macs_to or base.equal_macs_to
        return Arm(None, equal_macs_to, {**base.tokenizer, **arm.tokenizer}, {**base.dit, **arm.dit})


def read_study_plan(path: Path) -> StudyPlan:
    """
    Raises:
        InputError: The file is no plan; the message says what is wrong. Options are checked when a unit begins.
    """
    return _read(path, [])


def _read(path: Path, extending: list[Path]) -> StudyPlan:
    """`extending` are the plans that lead to this one."""
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read plan {path}: {' '.join(str(error).split())}") from error
    base = None
    if isinstance(content, dict) and isinstance(content.get("extends"), str):
        base = _read_base(path, content, [*extending, path])
        content = {**_taken_over(base), **content}
    plan = read_fields(StudyPlan, content, str(path))
    plan.path, plan.base = path, base
    if not plan.arms or not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise InputError(f"{path}: arms and seeds must be one or more, and all different; got {plan.seeds}")
    if plan.looks < 1:
        raise InputError(f"{path}: looks {plan.looks} must be 1 or more")
    steps = plan.measured_after
    if not steps or steps != sorted(set(steps)) or steps[0] < 1:
        raise InputError(f"{path}: measured_after {steps} must be rising steps of the DiT, 1 or more")
    plan.arms = {
        str(name): read_fields(Arm, {} if arm is None else arm, f"{path}: arm {name!r}")
        for name, arm in plan.arms.items()
    }
    # First, since the others may name them.
    for name, arm in plan.arms.items():
        if arm.shared:
            _check_shared(plan, name, arm)
    for name, arm in plan.arms.items():
        if not arm.shared:
            _check_arm(plan, name, arm, path)
    for name, arm in plan.arms.items():
        if not arm.shared:
            _check_equal_macs(plan, name, path)
    if len({folder_name(arm) for arm in plan.arms}) < len(plan.arms):
        raise InputError(f"{path}: two arms would share a folder; choose clearer names")
    plan.claims = {
        str(statement): read_fields(Claim, claim, f"{path}: claim {statement!r}")
        for statement, claim in plan.claims.items()
    }
    for statement, claim in plan.claims.items():
        _check_claim(plan, statement, claim, path)
    for section, decided in DECIDED.items():
        options = [getattr(plan, section), *(getattr(arm, section, {}) for arm in plan.arms.values())]
        if wrong := sorted({key for each in options for key in each if key in decided}):
            raise InputError(f"{path}: {section}: {', '.join(wrong)} is decided by the study; omit it")
    return plan


def _read_base(path: Path, content: dict, extending: list[Path]) -> StudyPlan:
    other = Path(os.path.normpath(path.parent / content["extends"]))
    if any(other.resolve() == each.resolve() for each in extending):
        raise InputError(f"{path} extends itself: {' -> '.join(map(str, [*extending, other]))}")
    if changed := [str(key) for key in content if key not in OWN]:
        raise InputError(
            f"{path} extends {other}, whose arms are under equal terms with its own: omit {', '.join(changed)}, "
            f"or let arms change it; expected {', '.join(OWN)}"
        )
    return _read(other, extending)


def _taken_over(base: StudyPlan) -> dict[str, Any]:
    names = ["seeds", *(entry.name for entry in fields(base) if entry.init and entry.name not in OWN)]
    return {name: getattr(base, name) for name in names}


def _check_shared(plan: StudyPlan, name: str, arm: Arm) -> None:
    where = f"{plan.path}: arm {name!r}"
    if plan.base is None:
        raise InputError(f"{where} is shared with no plan; name one with extends")
    if name not in plan.base.arms:
        raise InputError(f"{where} is no arm of {plan.base.path}; expected one of {', '.join(plan.base.arms)}")
    if arm != Arm(shared=True):
        raise InputError(f"{where} is that of {plan.base.path}; omit its other keys, or shared")
    if unknown := [seed for seed in plan.seeds if seed not in plan.base.seeds]:
        raise InputError(f"{where} is shared, and {plan.base.path} has no seed {unknown[0]}; add it there")


def _check_arm(plan: StudyPlan, name: str, arm: Arm, path: Path) -> None:
    for key, other in (("like", arm.like), ("equal_macs_to", arm.equal_macs_to)):
        if other is not None and (other == name or other not in plan.arms):
            others = ", ".join(each for each in plan.arms if each != name)
            raise InputError(f"{path}: arm {name!r}: {key} {other!r} is no other arm; expected one of {others}")
    chain, like = [name], arm.like
    while like is not None and like in plan.arms:
        chain.append(like)
        if like in chain[:-1]:
            raise InputError(f"{path}: arm {name!r} is like itself: {' -> '.join(chain)}")
        like = plan.arms[like].like


def _check_equal_macs(plan: StudyPlan, name: str, path: Path) -> None:
    """Of an arm, with what it has from the one that it is `like`."""
    arm = plan.arm(name)
    if arm.equal_macs_to is None:
        return
    if plan.arm(arm.equal_macs_to).equal_macs_to is not None:
        raise InputError(f"{path}: arm {name!r}: equal_macs_to {arm.equal_macs_to!r}, which has it too; name another")
    if "max_train_steps" in plan.arms[name].tokenizer:
        raise InputError(f"{path}: arm {name!r} has max_train_steps and equal_macs_to; omit one of them")


def _check_claim(plan: StudyPlan, statement: str, claim: Claim, path: Path) -> None:
    where = f"{path}: claim {statement!r}"
    for key in ("arm", "than"):
        if getattr(claim, key) not in plan.arms:
            raise InputError(
                f"{where}: {key} {getattr(claim, key)!r} is no arm; expected one of {', '.join(plan.arms)}"
            )
    if claim.arm == claim.than:
        raise InputError(f"{where}: arm {claim.arm!r} is compared with itself; name another in `than`")
    if claim.after is not None and claim.after not in plan.measured_after:
        raise InputError(f"{where}: after {claim.after} is not measured; expected one of {plan.measured_after}")
