"""A study from its plan file: `python -m tcae_diffusers.training.study PLAN`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcae_diffusers.arguments import exit_with_error
from tcae_diffusers.command import start_command
from tcae_diffusers.errors import InputError
from tcae_diffusers.training.study_arguments import StudyArguments

if TYPE_CHECKING:
    from tcae_diffusers.training.study.plan import StudyPlan
    from tcae_diffusers.training.study.unit import Unit


def main(argv: Sequence[str] | None = None) -> None:
    arguments = start_command(StudyArguments, argv)
    # Units run side by side, and cost CPU seconds that are to be compared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        run(arguments)
    except (InputError, OSError) as error:
        exit_with_error(str(error))


def run(arguments: StudyArguments) -> None:
    """
    Run what has no record yet, or write the page of those that are there.

    Raises:
        InputError: A bad plan, an arm or seed that is not in it, a record that was measured with other settings, or a
            command failed.
        SystemExit: The user asked to stop.
    """
    from tcae_diffusers.training.side_by_side import Job, run_side_by_side

    if arguments.page:
        from tcae_diffusers.training.study.page import write_claims, write_page

        for line in write_page(arguments.plan):
            print(line)
        if arguments.claims_page is not None:
            write_claims(arguments.claims_page, arguments.plan.resolve().parents[1])
            print(arguments.claims_page)
        return
    units = chosen_units(arguments)
    missing = units_without_record(units)
    print(f"{len(units) - len(missing)} of {len(units)} done", flush=True)
    if len(missing) == 1:
        missing[0].run()
        print(missing[0].record, flush=True)
        return
    jobs = []
    for unit in missing:
        options = ["--only", unit.arm, "--seeds", str(unit.seed), "--work", str(unit.work)]
        command = [sys.executable, "-m", "tcae_diffusers.training.study", str(arguments.plan), *options]
        jobs.append(Job(unit.name, command, unit.work / f"{unit.name}.log", unit.record))
    run_side_by_side(jobs, arguments.processes, lambda job: print(job.result, flush=True))


def chosen_units(arguments: StudyArguments) -> list[Unit]:
    """Arms and seeds of the plan, seed by seed, so that those that are compared run at about the same time."""
    from tcae_diffusers.training.study.plan import read_study_plan

    plan = read_study_plan(arguments.plan)
    known: dict[str, list] = {"only": list(plan.arms), "seeds": plan.seeds}
    for name, values in known.items():
        if wrong := [each for each in getattr(arguments, name) if each not in values]:
            raise InputError(
                f"--{name} {wrong[0]} is not in {arguments.plan}; expected one of {', '.join(map(str, values))}"
            )
    return [
        _unit(plan.owner(arm), arm, seed, arguments.work)
        for seed in plan.seeds
        for arm in plan.arms
        if arm in (arguments.only or plan.arms) and seed in (arguments.seeds or plan.seeds)
    ]


def _unit(plan: StudyPlan, arm: str, seed: int, work: Path | None) -> Unit:
    from tcae_diffusers.training.study.unit import Unit

    return Unit(plan, arm, seed, plan.records, work or Path("runs") / plan.path.resolve().parent.name)


def units_without_record(units: Sequence[Unit]) -> list[Unit]:
    """
    Raises:
        InputError: A unit cannot be run, or its record was measured with other settings.
    """
    from tcae_diffusers.training.recorded_settings import require_same_settings
    from tcae_diffusers.training.study.unit import REMEDY, read_unit

    missing = []
    for unit in units:
        settings = unit.settings()
        if unit.record.exists():
            require_same_settings(unit.record, read_unit(unit.record).settings, settings, REMEDY)
        else:
            missing.append(unit)
    return missing


if __name__ == "__main__":
    main()
