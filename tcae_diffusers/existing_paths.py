"""Which part of a word on a command line is a path: one that exists wins, whatever signs are in its name."""

import os


def split_before_path(text: str, separator: str) -> tuple[str | None, str]:
    """`NAME=PATH` or `SCHEME:REST` in two.

    Returns:
        `(None, text)` if `text` exists or has no separator, else what stands before and after the first separator.
    """
    prefix, found, rest = text.partition(separator)
    return (prefix, rest) if found and not os.path.exists(text) else (None, text)


def split_after_path(text: str, separator: str) -> tuple[str, str | None]:
    """`PATH:SPLIT` or `PATH?QUERY` in two.

    Returns:
        The longest part that exists and ends before a separator or the end of `text`, and what stands behind it
        (`None` for nothing); where no part exists, what stands before and after the first separator.
    """
    ends = [place for place in range(len(text)) if text.startswith(separator, place)]
    for end in [len(text), *reversed(ends)]:
        if os.path.exists(text[:end]):
            break
    else:
        end = ends[0] if ends else len(text)
    return text[:end], text[end + len(separator) :] if end < len(text) else None
