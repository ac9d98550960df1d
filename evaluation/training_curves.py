"""Scalars of training runs, read from the TensorBoard event files in their folders."""

from __future__ import annotations

from pathlib import Path

from .errors import EvaluationError

Curve = tuple[list[int], list[float]]


def read_scalars(run_folder: str | Path) -> dict[str, Curve]:
    """All scalars below a run folder: `{tag: (steps, values)}`, in the order of steps.

    A resumed run has several event files; where they overlap, what was written last counts.

    Raises:
        EvaluationError: If the folder does not exist or holds no event file.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run_folder)
    if not folder.is_dir():
        raise EvaluationError(f"run folder {folder} does not exist")
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise EvaluationError(f"no TensorBoard event file (events.out.tfevents.*) below {folder}")
    points: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={SCALARS: 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                points.setdefault(tag, {})[event.step] = event.value
    return {tag: (sorted(values), [values[step] for step in sorted(values)]) for tag, values in points.items()}
