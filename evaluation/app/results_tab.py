"""The tab that shows reports and comparisons."""

from typing import TYPE_CHECKING

from .error_sentences import with_sentences
from .reports import framed, read_report, report_names
from .shown import Shown

if TYPE_CHECKING:
    import gradio as gr


def add_results_tab(shown: Shown, tab: "gr.Tab") -> None:
    """Adds the contents of the tab to the page that is being built."""
    import gradio as gr

    folder = shown.results
    if folder is None:
        gr.Markdown("There are no results to show: start the page with `--results FOLDER`.")
        return
    names = report_names(folder)
    with gr.Row(equal_height=True):
        # A report that was written already says more than the page that is made of its results.
        report = gr.Dropdown(names, value=names[-1], label="Report", scale=5, elem_id="report")
        refresh = gr.Button("Refresh the list", scale=1, min_width=120, elem_id="refresh")
    frame = gr.HTML(elem_id="frame")

    def show(name: str) -> str:
        return framed(read_report(folder, name))

    def list_again(name: str) -> "gr.Dropdown":
        found = report_names(folder)
        return gr.Dropdown(found, value=name if name in found else found[0])

    gr.on(
        [tab.select, report.input], with_sentences(show), report, frame, api_visibility="private", concurrency_limit=4
    )
    refresh.click(with_sentences(list_again), report, report, api_visibility="private")
