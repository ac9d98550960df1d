"""
The page to try autoencoders and pipelines on: `tcae-app`, or `python -m tcae_diffusers.evaluation.app`.

`reconstruction`, `generation` and `reports` find what is shown and know nothing of a page; `*_tab` show it. gradio, of
the extra `app`, is imported by the functions that build the page and not by their modules.
"""
