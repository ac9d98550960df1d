"""How do samples change with guidance?"""

from __future__ import annotations

from ..arguments.guidance_sweep import GuidanceSweepArguments
from ..report.page import build_report
from ..results.kinds.generation import distance_figure
from ..results.kinds.guidance_sweep import GuidanceSweepResult, SweepPoint
from ..results.provenance import provenance
from .measured_samples import measure_pipeline


def run(arguments: GuidanceSweepArguments) -> GuidanceSweepResult:
    """
    Draws and measures every point that is not done.

    Raises:
        InputError: If the pipeline or the reference cannot be used.
    """
    state = arguments.process_state()
    points = []
    for scale, interval in arguments.points():
        name = f"scale-{scale:g}_interval-{interval[0]:g}-{interval[1]:g}"
        guidance = arguments.guidance_at(scale, interval)
        weaker = arguments.guidance_transformer if scale > 1 else None
        found = measure_pipeline(arguments.pipeline, arguments.output / name, name, arguments, guidance, weaker)
        figures = found.sets[0].figures
        points.append(SweepPoint(guidance_scale=scale, guidance_interval=interval, figures=figures, folder=name))
    best = min(points, key=lambda point: distance_figure(point.figures).value)
    result = GuidanceSweepResult(
        pipeline=arguments.pipeline,
        points=points,
        best={"guidance_scale": best.guidance_scale, "guidance_interval": best.guidance_interval},
        guider=None if arguments.guider is None else {"name": arguments.guider, **arguments.guider_options},
        reference={"spec": arguments.reference},
        **provenance(num_images=arguments.num_images, steps=arguments.num_inference_steps, seed=arguments.seed),
    )
    if state.is_main_process:
        result.files["guidance_sweep.html"] = build_report([result], title="Guidance sweep")
    return result
