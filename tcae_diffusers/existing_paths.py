"""Which part of a word on a command line is a path: one that exists wins, whatever signs are in its name."""

import os
from collections.abc import Collection


def split_before_path(text: str, separator: str) -> tuple[str | None, str]:
    """`NAME=PATH` in two.

    Returns:
        `(None, text)` if `text` exists or has no separator. Else what stands before and after the first separator
        behind which a path that exists begins, or, without one, the first separator.
    """
    places = _places(text, separator)
    if not places or os.path.exists(text):
        return None, text
    splits = [(text[:place], text[place + len(separator) :]) for place in places]
    return next((split for split in splits if os.path.exists(split[1])), splits[0])


def split_after_path(text: str, separator: str) -> tuple[str, str | None]:
    """`PATH:SPLIT` or `PATH?QUERY` in two.

    Returns:
        The longest part that exists and ends before a separator or the end of `text`, and what stands behind it
        (`None` for nothing); where no part exists, what stands before and after the first separator.
    """
    places = _places(text, separator)
    fallback = places[0] if places else len(text)
    end = next((end for end in [len(text), *reversed(places)] if os.path.exists(text[:end])), fallback)
    return text[:end], text[end + len(separator) :] if end < len(text) else None


def scheme_before(text: str, schemes: Collection[str]) -> str | None:
    """The one of `schemes` with which `SCHEME:REST` begins; `None` without one, and for a path that exists."""
    scheme, separator, _ = text.partition(":")
    return scheme if separator and scheme in schemes and not os.path.exists(text) else None


def local_folder(source: str) -> str | None:
    """The folder in which the images of a data source lie, `FOLDER` in `stream:FOLDER:train?name=all`, if any."""
    if os.path.isdir(source):
        return source
    scheme, _, rest = source.partition(":")
    if scheme not in ("datasets", "stream"):
        return None
    # With a split, with options, or with both behind it.
    places = [len(rest), *reversed(_places(rest, ":")), *reversed(_places(rest, "?"))]
    return next((rest[:place] for place in places if os.path.isdir(rest[:place])), None)


def _places(text: str, separator: str) -> list[int]:
    return [place for place in range(len(text)) if text.startswith(separator, place)]
