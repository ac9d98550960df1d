"""The tab that sets reconstructions of one image side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tcae_diffusers.data.images.decoding import load_rgb_image
from tcae_diffusers.errors import InputError

from ..arguments.app import LimitArguments
from ..pictures.contact_sheet import contact_sheet
from ..results.figure_text import format_number
from .error_sentences import with_sentences
from .reconstruction import BRIGHTEST_ERROR, Reconstruction
from .shown import DEFAULT_SIDE, Shown

if TYPE_CHECKING:
    import gradio as gr

# Autoencoders side by side.
COLUMNS = 3
_DISPLAYED_SIDE = 512


def add_reconstruct_tab(shown: Shown, limits: LimitArguments) -> None:
    """Adds the contents of the tab to the page that is being built."""
    import gradio as gr

    if not shown.autoencoders:
        gr.Markdown("There is no autoencoder to try: start the page with `--autoencoder` or `--pipeline`.")
        return
    names = list(shown.autoencoders)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = _add_upload()
            examples = _add_examples(shown)
            chosen = gr.Dropdown(
                names,
                value=names[:COLUMNS],
                multiselect=True,
                label=f"Autoencoders (up to {COLUMNS})",
                elem_id="chosen",
            )
            side = gr.Number(
                value=shown.autoencoders[names[0]].image_size or DEFAULT_SIDE,
                precision=0,
                label="Side in pixels",
                info="The image is resized and cropped to a square.",
                elem_id="side",
            )
            noise = gr.Slider(
                0,
                2,
                value=0,
                step=0.05,
                label="Noise on the latent",
                info="In standard deviations of each channel: what errors of a diffusion model would cost.",
                elem_id="noise",
            )
            button = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")
        with gr.Column(scale=3):
            with gr.Row():
                columns = [_add_column(index) for index in range(COLUMNS)]
            gr.Markdown(
                f"Error maps show the mean absolute error over the channels, from black at 0 to white at "
                f"{BRIGHTEST_ERROR} of 255 levels. Components are the first three principal ones of all positions as "
                "red, green and blue: colours can be compared within a picture, not between two."
            )

    def reconstruct(path: str | None, chosen: list[str], side: int | None, noise: float | None) -> list[Any]:
        if not path:
            raise InputError("there is no image; upload one, or pick one of the examples")
        if not 1 <= len(chosen) <= COLUMNS:
            raise InputError(f"choose one to {COLUMNS} autoencoders instead of {len(chosen)}")
        if side is None or not 1 <= side <= limits.max_side:
            raise InputError(f"the side must be a whole number of pixels from 1 to {limits.max_side}")
        if noise is None or not 0 <= noise <= 2:
            raise InputError("the noise must be between 0 and 2")
        picture = load_rgb_image(path, Path(path).name)
        answers: list[Any] = []
        for name in chosen:
            with shown.device_lock:
                result = shown.autoencoders[name].reconstruct(picture, side, noise)
                text = _describe(name, shown, result, side, noise)
            answers += _column_values(result, text)
        return answers + _hidden_column() * (COLUMNS - len(chosen))

    computed: dict[str, Any] = {
        "fn": with_sentences(reconstruct),
        "inputs": [image, chosen, side, noise],
        "outputs": [component for column in columns for component in column],
        "concurrency_id": "device",
        "api_visibility": "private",
    }
    gr.on([button.click, noise.release, image.upload], **computed)
    if examples is not None:

        def pick(event: gr.SelectData) -> Image.Image:
            return shown.examples.images[event.index]

        picked = examples.select(with_sentences(pick), None, image, api_visibility="private", show_progress="hidden")
        picked.success(**computed)


def _add_upload() -> "gr.Image":
    import gradio as gr

    image = gr.Image(
        label="Image", type="filepath", format="png", sources=["upload", "clipboard"], height=260, elem_id="image"
    )
    # gradio would decode the file itself, before anything here can say what is wrong with it.
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _add_examples(shown: Shown) -> "gr.Gallery | None":
    import gradio as gr

    examples = shown.examples
    gallery = None
    if examples.images:
        gr.Markdown("Or pick one:")
        gallery = gr.Gallery(
            [_displayed(np.asarray(image), 64) for image in examples.images],
            show_label=False,
            columns=4,
            height="auto",
            allow_preview=False,
            format="png",
            buttons=[],
            interactive=False,
            elem_id="examples",
        )
    if examples.note:
        gr.Markdown(examples.note)
    return gallery


def _add_column(index: int) -> "list[gr.components.Component]":
    """Slider, figures, error map, components and their names of one autoencoder."""
    import gradio as gr

    buttons = ["download", "fullscreen"]
    with gr.Column(min_width=220):
        return [
            gr.ImageSlider(
                label="Original | output",
                type="numpy",
                format="png",
                interactive=False,
                visible=index == 0,
                elem_id=f"slider-{index}",
            ),
            gr.Markdown(visible=index == 0, elem_id=f"figures-{index}"),
            gr.Image(
                label="Error map",
                format="png",
                buttons=buttons,
                interactive=False,
                visible=index == 0,
                elem_id=f"error-map-{index}",
            ),
            gr.Image(
                show_label=False,
                format="png",
                buttons=buttons,
                interactive=False,
                visible=index == 0,
                elem_id=f"components-{index}",
            ),
            gr.Markdown(visible=index == 0, elem_id=f"component-names-{index}"),
        ]


def _column_values(result: Reconstruction, text: str) -> list[Any]:
    import gradio as gr

    original, output = _displayed(result.original), _displayed(result.output)
    components = contact_sheet([list(result.components.values())], smallest_side=_DISPLAYED_SIDE // 2)
    return [
        gr.ImageSlider((original, output), visible=True),
        gr.Markdown(text, visible=True),
        gr.Image(_displayed(result.error_map), visible=True),
        gr.Image(components, visible=True),
        gr.Markdown(f"Principal components, from left to right: {', '.join(result.components)}.", visible=True),
    ]


def _hidden_column() -> list[Any]:
    import gradio as gr

    return [kind(visible=False) for kind in (gr.ImageSlider, gr.Markdown, gr.Image, gr.Image, gr.Markdown)]


def _describe(name: str, shown: Shown, result: Reconstruction, side: int, noise: float) -> str:
    autoencoder = shown.autoencoders[name]
    cost = autoencoder.cost(side)
    channels, height, width = result.latent_shape
    rows = [("PSNR", f"{result.psnr:.2f} dB"), ("SSIM", f"{result.ssim:.4f}")]
    if noise > 0:
        rows.insert(1, ("PSNR without noise", f"{result.psnr_without_noise:.2f} dB"))
    rows += [
        ("Latent", f"{channels} × {height} × {width}"),
        ("Encoder", f"{format_number(cost.encode_macs / 1e9)} GMAC"),
        ("Decoder", f"{format_number(cost.decode_macs / 1e9)} GMAC"),
        ("Parameters", f"{format_number(cost.parameters / 1e6)} M"),
    ]
    # What stands in a table of Markdown must not end a cell.
    heading = name.replace("|", "\\|")
    return "\n".join([f"| {heading} | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def _displayed(picture: np.ndarray, side: int = _DISPLAYED_SIDE) -> Image.Image:
    """Small pictures larger, each pixel a square, since browsers would blur them."""
    return contact_sheet([[picture]], smallest_side=side)
