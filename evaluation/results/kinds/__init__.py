"""Every kind of result that reports and comparisons know; a new one is a file here and one in [`RESULT_KINDS`]."""

from ..result import Result
from .bench import BenchResult
from .comparison import ComparisonResult
from .convergence import ConvergenceResult
from .cost import CostResult
from .generation import GenerationResult
from .guidance_sweep import GuidanceSweepResult
from .latents import LatentsResult
from .probing import ProbingResult
from .reconstruction import ReconstructionResult
from .study_unit import StudyUnitResult

__all__ = ["RESULT_KINDS"]

# By the `kind` in their files, in the order of a report.
RESULT_KINDS: dict[str, type[Result]] = {
    kind.kind: kind
    for kind in (
        ComparisonResult,
        ConvergenceResult,
        GuidanceSweepResult,
        ReconstructionResult,
        GenerationResult,
        ProbingResult,
        LatentsResult,
        CostResult,
        StudyUnitResult,
        BenchResult,
    )
}
