"""The page: its three tabs, and how it is served."""

import signal
import sys
from typing import TYPE_CHECKING

from tcae_diffusers.errors import InputError

from ..arguments.app import AppArguments
from .generate_tab import add_generate_tab
from .reconstruct_tab import add_reconstruct_tab
from .results_tab import add_results_tab
from .shown import Shown

if TYPE_CHECKING:
    import gradio as gr

# Seconds between two looks for files that nobody needs, and their age by then: uploads, and pictures that were shown.
_CLEANING = (600, 3600)
_LARGEST_UPLOAD = "32mb"
_STYLE = """
iframe.report { width: 100%; height: 80vh; border: 0; }
#image img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.grid-wrap.fixed-height { min-height: 0; max-height: none; }
"""


def build_page(shown: Shown, arguments: AppArguments) -> "gr.Blocks":
    """The page, ready to be served."""
    import gradio as gr

    with gr.Blocks(title="TC-AE", analytics_enabled=False, delete_cache=_CLEANING, fill_width=True) as page:
        gr.Markdown("# Autoencoders, and what is generated in their latents")
        with gr.Tab("Reconstruct"):
            add_reconstruct_tab(shown, arguments)
        with gr.Tab("Generate"):
            add_generate_tab(shown, arguments, page)
        with gr.Tab("Results") as results:
            add_results_tab(shown, results)
    return page.queue(max_size=arguments.max_waiting, default_concurrency_limit=1, api_open=False)


def serve(page: "gr.Blocks", arguments: AppArguments) -> None:
    """
    Serves the page until Ctrl-C or SIGTERM.

    Raises:
        InputError: The address cannot be listened on.
    """
    import gradio as gr

    try:
        _, address, _ = page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=False,
            allowed_paths=[],
            max_file_size=_LARGEST_UPLOAD,
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_STYLE,
        )
    except OSError as error:
        raise InputError(
            f"cannot listen on port {arguments.port} of {arguments.host}, which is in use or not an address of this "
            "machine; choose another --port or --host"
        ) from error
    # As after Ctrl-C, what was uploaded and made is deleted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"The page is at {address} until Ctrl-C.", flush=True)
    page.block_thread()
