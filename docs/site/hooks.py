"""README.md and CONTRIBUTING.md as pages of the site: one text for the repository and for the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds both pages, whose links are relative to the repository."""
    root = Path(config.config_file_path).parent
    addresses = {file: page for page, file in _PAGES.items()}
    for page, file in _PAGES.items():
        text = (root / file).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        text = re.sub(r"\]\(([A-Z]+\.md)", lambda link: f"]({addresses.get(link[1], link[1])}", text)
        files.append(File.generated(config, page, content=text))
    return files
