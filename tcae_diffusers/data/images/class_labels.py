"""From a column of a data set to one class index per image."""

import re
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ...errors import InputError

# Names that label columns have in the data sets of the Hub and in tar shards, the commonest first.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "target")
# No class is called so by other digits than these, nor by a number that Python refuses to read.
_WHOLE_NUMBER = re.compile("[0-9]{1,18}")


def find_label_column(features: datasets.Features, wanted: str | None, name: str) -> str | None:
    """The column `wanted`, or the one that holds labels by type or by name, or None.

    Args:
        features (`datasets.Features`): Of the data set.
        wanted (`str`, *optional*): `""` for a data set whose labels are not to be used.
        name (`str`): What error messages call the data set.

    Raises:
        InputError: There is no such column, or several may be meant.
    """
    if wanted is not None:
        if wanted and wanted not in features:
            raise InputError(f"{name} has no column {wanted!r}; expected one of {', '.join(features)}")
        return wanted or None
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [column for column in LABEL_COLUMNS if column in features]
    both = [column for column in named if column in typed]
    if both or not typed:
        return next(iter(both or named), None)
    if len(typed) == 1 and not named:
        return typed[0]
    several = ", ".join([*typed, *named])
    raise InputError(f"{name} has several label columns ({several}); name one with ?label=COLUMN")


def read_labels(dataset: datasets.Dataset, column: str, name: str) -> tuple[list[str], np.ndarray]:
    """
    Class names, and the index of each row's class as int64 `(N,)`.

    A `ClassLabel` column brings its names. The distinct values of other columns are the classes in sorted order: whole
    numbers (also those that a missing value elsewhere turned into floats, as pandas does) and strings. Where all
    strings are whole numbers, they are sorted as numbers.

    Args:
        dataset (`datasets.Dataset`): With the column, of at least one row.
        column (`str`): Its name.
        name (`str`): What error messages call the data set.

    Raises:
        InputError: A row has no label, or one that names no single class. The message names the first such row.
    """
    values = dataset.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    refuse = _Refusal(column, name, values)
    missing = _missing(values)
    if missing.any():
        raise refuse.error(int(missing.argmax()), "has no label", "is")
    if pa.types.is_floating(values.type):
        numbers = values.to_numpy(zero_copy_only=False)
        fractional = (numbers != np.floor(numbers)) | (np.abs(numbers) > 2**53)
        if fractional.any():
            raise refuse.error(int(fractional.argmax()), "names no class", "is")
        values = pa.array(numbers.astype(np.int64))
    if pa.types.is_integer(values.type):
        return _of_numbers(values.to_numpy(), dataset.features[column], refuse)
    if pa.types.is_boolean(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _by_sorting(values.to_pylist())
    raise refuse.error(0, "names no single class", f"holds {dataset.features[column]}, here")


def _missing(values: pa.Array) -> np.ndarray:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return np.array([not (text or "").strip() for text in values.to_pylist()])
    return values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)


def _of_numbers(numbers: np.ndarray, feature: Any, refuse: "_Refusal") -> tuple[list[str], np.ndarray]:
    if numbers.min() < 0:
        # Data sets write -1 where a label is kept secret.
        raise refuse.error(int((numbers < 0).argmax()), "has no label", "is")
    if not isinstance(feature, datasets.ClassLabel):
        return _by_sorting(numbers.tolist())
    if numbers.max() >= feature.num_classes:
        raise refuse.error(
            int((numbers >= feature.num_classes).argmax()), f"names none of the {feature.num_classes} classes", "is"
        )
    return list(feature.names), numbers.astype(np.int64)


def _by_sorting(values: list[Any]) -> tuple[list[str], np.ndarray]:
    distinct = set(values)
    if all(isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) for value in distinct):
        # Tar shards hold numbers as text: class 10 comes after class 9, as it does where they are numbers.
        ordered = sorted(distinct, key=lambda text: (int(text), text))
    else:
        ordered = sorted(distinct)
    label_of = {value: label for label, value in enumerate(ordered)}
    return [str(value) for value in ordered], np.array([label_of[value] for value in values], dtype=np.int64)


class _Refusal:
    def __init__(self, column: str, name: str, values: pa.Array):
        self.column, self.name, self.values = column, name, values

    def error(self, row: int, what: str, verb: str) -> InputError:
        value = repr(self.values[row].as_py())
        return InputError(
            f"row {row} of {self.name} {what}: column {self.column!r} {verb} {value[:60]}; expected an integer or a "
            "string for each image. Fix the row, choose another column with ?label=COLUMN, or ignore the labels "
            "with ?label="
        )
