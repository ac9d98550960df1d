"""Entry point of the page: `python -m tcae_diffusers.evaluation.app`, also `tcae-app`."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence

from tcae_diffusers.arguments import exit_with_error
from tcae_diffusers.command import start_command

from ..arguments.app import AppArguments


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C.

    Raises:
        SystemExit: With code 2, after one line, if gradio is not installed or something cannot be loaded.
    """
    arguments = start_command(AppArguments, argv)
    if importlib.util.find_spec("gradio") is None:
        exit_with_error("the page needs the package gradio; install it with pip install 'tcae-diffusers[app]'")
    # gradio serves all that lies in its folder for uploads, which other programs of this user share by default.
    with tempfile.TemporaryDirectory(prefix="tcae-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from tcae_diffusers.trainer.user_errors import exit_on_user_error

        from .page import build_page, serve
        from .shown import open_shown

        with exit_on_user_error():
            serve(build_page(open_shown(arguments), arguments), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
