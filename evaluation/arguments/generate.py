"""Options of `generate`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError

from .groups import Content, MachineArguments
from .sampling import DrawingArguments, GuidanceArguments


@dataclass
class DrawnSetArguments(Arguments):
    """What is generated, and how."""

    group: ClassVar[str] = "Samples"

    pipeline: str | None = option(
        None, "Pipeline folder or Hub name; not needed for --baseline class-mean.", metavar="PATH"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Data type of the pipeline.")
    layout: Literal["folder", "flat", "npz"] = option(
        "folder", "What is written: class folders of PNG files, PNG files in one folder, or an ADM-style archive."
    )
    output: Path = option(
        MISSING, "Folder for the images, or a path that ends in .npz with --layout npz.", metavar="PATH"
    )


@dataclass
class TransformerArguments(Arguments):
    """Weights that the pipeline does not have by itself."""

    group: ClassVar[str] = "Transformer"

    transformer: str | None = option(
        None,
        "Transformer that draws instead of the pipeline's own, such as OUTPUT_DIR/ema/0.999 of train_dit.",
        metavar="FOLDER",
    )
    ema_snapshots: str | None = option(
        None,
        "Snapshots from which --ema_sigma builds the weights of the transformer: OUTPUT_DIR/ema_snapshots of a "
        "train_dit with --posthoc_ema_sigmas.",
        metavar="FOLDER",
    )
    ema_sigma: float | None = option(
        None, "Length of the average that is built from --ema_snapshots, relative to the run, such as 0.07.", above=0
    )
    guidance_transformer: str | None = option(
        None,
        "Weaker transformer that --guidance_scale leads away from (autoguidance), instead of predictions without a "
        "label: a pipeline or transformer, such as OUTPUT_DIR/pipelines/step-00005000 of train_dit.",
        metavar="FOLDER",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, other in (("ema_snapshots", "ema_sigma"), ("ema_sigma", "ema_snapshots")):
            given = getattr(self, other) is not None or getattr(self, name) is None
            self._require(name, given, f"given with --{other}")
        self._require_default("transformer", unless=self.ema_snapshots is None, omitted="with --ema_snapshots")


@dataclass
class BaselineArguments(Arguments):
    """Baselines to compare a trained model with."""

    group: ClassVar[str] = "Baselines"

    baseline: Literal["untrained", "class-mean"] | None = option(
        None,
        "Baseline to generate instead: untrained is the pipeline with a randomly initialised transformer, "
        "class-mean the pixelwise mean of each class of --data.",
    )
    data: str | None = option(None, "Images that --baseline class-mean averages.", metavar="SOURCE")
    resolution: int | None = option(
        None,
        "Side in pixels of the images of --baseline class-mean; that of the first image if unset.",
        metavar="PIXELS",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_mean = self.baseline == "class-mean"
        self._require_default("data", "resolution", unless=is_mean, omitted="unless --baseline is class-mean")


@dataclass
class GenerateArguments(
    DrawnSetArguments,
    GuidanceArguments,
    DrawingArguments,
    TransformerArguments,
    BaselineArguments,
    MachineArguments,
):
    """
    Generate a set of labelled samples with a class-conditional pipeline, or a baseline set, to compare with real
    images.

    Image i depends only on the pipeline, the seed, i and the sampling settings: batch size, number of ranks and
    interruptions change nothing. Under accelerate launch, the ranks share the images. After an interruption, the same
    command generates what is missing.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "pipeline": "folder",
        "transformer": "folder",
        "ema_snapshots": "folder",
        "guidance_transformer": "folder",
        "labels": "labels",
        "data": "source",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        transformers = ("transformer", "ema_snapshots", "guidance_transformer")
        self._require_default(*transformers, unless=not self.baseline, omitted="with --baseline")
        is_drawn = self.baseline != "class-mean"
        self._require_default("guider", "height", "width", unless=is_drawn, omitted="with --baseline class-mean")
        unguided = "unless --guidance_scale is above 1 or --guider is given"
        self._require_default("guidance_transformer", unless=self.is_guided, omitted=unguided)
        if self.baseline == "class-mean" and not self.data:
            raise InputError("--baseline class-mean needs --data, the images to average")
        if self.baseline != "class-mean" and not self.pipeline:
            raise InputError("--pipeline is missing; pass the folder of a saved pipeline")

    def sampling(self, has_guider: bool) -> dict[str, Any]:
        """What the pipeline is called with; options that are unset are left out, for pipelines that know none."""
        given = {name: getattr(self, name) for name in ("timestep_shift", "height", "width")}
        given = {name: value for name, value in given.items() if value is not None}
        return {**self.guidance(has_guider), "num_inference_steps": self.num_inference_steps, **given}
