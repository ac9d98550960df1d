"""The tab that draws images."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tcae_diffusers.errors import InputError

from ..arguments.app import AppArguments
from ..pictures.contact_sheet import contact_sheet
from ..pictures.drawing import class_choices
from .error_sentences import with_sentences
from .generation import LARGEST_SEED, Sampling, draw_between, draw_seeds, guider_names, scheduler_names
from .shown import Shown

if TYPE_CHECKING:
    import gradio as gr

_DISPLAYED_SIDE = 128


class CancelledError(Exception):
    """The visitor has cancelled the request."""


class RunningRequests:
    """
    The request of each session that is being answered, so that a session can cancel its own, and no other.

    A session is an open page; `None` stands for one that gradio does not name.
    """

    def __init__(self) -> None:
        self._stops: dict[str | None, threading.Event] = {}

    def start(self, session: str | None) -> threading.Event:
        """Is set once the session cancels what starts now."""
        stop = self._stops[session] = threading.Event()
        return stop

    def end(self, session: str | None, stop: threading.Event) -> None:
        """Forget it, unless the session has started another one since."""
        if self._stops.get(session) is stop:
            del self._stops[session]

    def cancel(self, session: str | None) -> bool:
        """Whether there was something to cancel."""
        stop = self._stops.get(session)
        if stop is not None:
            stop.set()
        return stop is not None


def add_generate_tab(shown: Shown, arguments: AppArguments, page: "gr.Blocks") -> None:
    """Adds the contents of the tab to the page that is being built."""
    import gradio as gr

    if not shown.pipelines:
        gr.Markdown("There is no pipeline to try: start the page with `--pipeline`.")
        return
    running = RunningRequests()
    names = list(shown.pipelines)
    first = shown.pipelines[names[0]]
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            pipeline = gr.Dropdown(names, value=names[0], label="Pipeline", elem_id="pipeline", visible=len(names) > 1)
            classes = gr.Dropdown(
                class_choices(first),
                value=class_choices(first)[:1],
                multiselect=True,
                label="Classes",
                elem_id="classes",
            )
            with gr.Row():
                count = gr.Number(4, precision=0, label="Images of each class", elem_id="count", min_width=120)
                seed = gr.Number(0, precision=0, label="First seed", elem_id="seed", min_width=120)
            with gr.Row():
                steps = gr.Number(
                    min(25, arguments.max_steps), precision=0, label="Denoising steps", elem_id="steps", min_width=120
                )
                scale = gr.Number(
                    1 if first.null_class_id is None and first.guidance_transformer is None else 3,
                    label="Guidance scale",
                    info="1 means no guidance.",
                    elem_id="scale",
                    min_width=120,
                )
            scheduler = gr.Dropdown(
                scheduler_names(first), value=scheduler_names(first)[0], label="Scheduler", elem_id="scheduler"
            )
            guider = gr.Dropdown(guider_names(first), value=guider_names(first)[0], label="Guider", elem_id="guider")
            button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Accordion("Between two seeds", open=False, elem_id="between"):
                last_seed = gr.Number(1, precision=0, label="Last seed", elem_id="last-seed")
                frames = gr.Number(8, precision=0, label="Images from the first seed to the last", elem_id="frames")
                interpolate = gr.Button("Interpolate", elem_id="interpolate")
            cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
        with gr.Column(scale=3):
            status = gr.Markdown(elem_id="status")
            gallery = gr.Gallery(
                show_label=False,
                columns=6,
                height="auto",
                format="png",
                buttons=["download", "fullscreen"],
                interactive=False,
                elem_id="gallery",
            )
            selected = gr.Textbox(
                label="Seed of the selected image",
                info="With its class, one image and the same settings, it draws the image again.",
                interactive=False,
                buttons=["copy"],
                elem_id="selected",
            )
    # The seed of each image of the gallery; an image between two seeds has none.
    seeds_shown = gr.State([])

    def suit_pipeline(name: str) -> list[Any]:
        chosen = shown.pipelines[name]
        class_names, schedulers, guiders = class_choices(chosen), scheduler_names(chosen), guider_names(chosen)
        return [
            gr.Dropdown(class_names, value=class_names[:1]),
            gr.Dropdown(schedulers, value=schedulers[0]),
            gr.Dropdown(guiders, value=guiders[0]),
        ]

    def draw_for(
        request: gr.Request,
        progress: gr.Progress,
        settings: tuple[int | None, float | None, str, str],
        draw: Callable[[Sampling], np.ndarray],
    ) -> np.ndarray | None:
        """With steps, guidance scale, scheduler and guider as in the fields; `None` if the visitor cancelled it."""
        steps, scale, scheduler, guider = settings
        stop = running.start(request.session_hash)

        def on_step(part: float) -> None:
            if stop.is_set():
                raise CancelledError
            progress(part, desc="Denoising")

        whole, strength = _whole("denoising steps", steps, 1, arguments.max_steps), _guidance(scale)
        try:
            with shown.device_lock:
                if stop.is_set():
                    raise CancelledError
                return draw(Sampling(scheduler, whole, guider, strength, arguments.batch_size, on_step))
        except CancelledError:
            return None
        finally:
            running.end(request.session_hash, stop)

    def generate(
        name: str,
        classes: list[str],
        count: int | None,
        seed: int | None,
        steps: int | None,
        scale: float | None,
        scheduler: str,
        guider: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),
    ) -> list[Any]:
        if not classes:
            raise InputError("choose at least one class")
        each = _whole("images of each class", count, 1, arguments.max_images // len(classes))
        start = _whole("first seed", seed, 0, LARGEST_SEED - each)
        chosen, known = shown.pipelines[name], class_choices(shown.pipelines[name])
        labels = [known.index(label) for label in classes for _ in range(each)]
        seeds = [start + index for _ in classes for index in range(each)]
        images = draw_for(
            request,
            progress,
            (steps, scale, scheduler, guider),
            lambda sampling: draw_seeds(chosen, labels, seeds, sampling),
        )
        captions = [f"seed {of_image} · {known[label]}" for label, of_image in zip(labels, seeds, strict=True)]
        return _answer(images, captions, [str(of_image) for of_image in seeds])

    def draw_interpolation(
        name: str,
        classes: list[str],
        seed: int | None,
        last_seed: int | None,
        frames: int | None,
        steps: int | None,
        scale: float | None,
        scheduler: str,
        guider: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),
    ) -> list[Any]:
        if len(classes) != 1:
            raise InputError(f"images between two seeds are of one class; choose one instead of {len(classes)}")
        ends = _whole("first seed", seed, 0, LARGEST_SEED), _whole("last seed", last_seed, 0, LARGEST_SEED)
        number = _whole("images from the first seed to the last", frames, 2, arguments.max_images)
        chosen = shown.pipelines[name]
        label = class_choices(chosen).index(classes[0])
        images = draw_for(
            request,
            progress,
            (steps, scale, scheduler, guider),
            lambda sampling: draw_between(chosen, label, ends, number, sampling),
        )
        between = [f"{part:.0%} of the way" for part in np.linspace(0, 1, number)[1:-1]]
        captions = [f"seed {ends[0]}", *between, f"seed {ends[1]}"]
        return _answer(images, captions, [str(ends[0]), *[""] * len(between), str(ends[1])])

    def stop_running(request: gr.Request) -> str:
        return "Cancelling." if running.cancel(request.session_hash) else "Nothing of yours is running."

    def leave(request: gr.Request) -> None:
        running.cancel(request.session_hash)

    def select(seeds: list[str], event: gr.SelectData) -> str:
        return seeds[event.index]

    hidden: dict[str, Any] = {"api_visibility": "private"}
    outputs = [gallery, seeds_shown, status, selected]
    settings = [steps, scale, scheduler, guider]
    computed: dict[str, Any] = {"concurrency_id": "device", "show_progress_on": gallery, **hidden}
    button.click(with_sentences(generate), [pipeline, classes, count, seed, *settings], outputs, **computed)
    interpolate.click(
        with_sentences(draw_interpolation),
        [pipeline, classes, seed, last_seed, frames, *settings],
        outputs,
        **computed,
    )
    cancel.click(stop_running, None, status, queue=False, **hidden)
    page.unload(leave)
    pipeline.change(suit_pipeline, pipeline, [classes, scheduler, guider], **hidden)
    gallery.select(select, seeds_shown, selected, show_progress="hidden", **hidden)


def _answer(images: np.ndarray | None, captions: list[str], seeds: list[str]) -> list[Any]:
    """Gallery, seeds, status and selected seed."""
    import gradio as gr

    if images is None:
        return [gr.skip(), gr.skip(), "Cancelled.", gr.skip()]
    pictures: list[tuple[Image.Image, str]] = [
        (contact_sheet([[image]], smallest_side=_DISPLAYED_SIDE), caption)
        for image, caption in zip(images, captions, strict=True)
    ]
    return [gr.Gallery(pictures, selected_index=None), seeds, f"{len(images)} images.", ""]


def _whole(name: str, value: int | None, lowest: int, highest: int) -> int:
    """
    Raises:
        InputError: The field is empty, or out of range.
    """
    if value is None or not lowest <= value <= highest:
        given = "nothing" if value is None else value
        raise InputError(f"{name}: {given} given, a whole number from {lowest} to {highest} expected")
    return value


def _guidance(value: float | None) -> float:
    if value is None or not 1 <= value <= 100:
        given = "nothing" if value is None else f"{value:g}"
        raise InputError(f"guidance scale: {given} given, a number from 1 (no guidance) to 100 expected")
    return value
