"""Labels that can be used are, and all others are refused by column and row."""

import datasets
import numpy as np
import pytest

from tcae_diffusers.data.images.class_labels import read_labels
from tcae_diffusers.errors import InputError

INT, FLOAT, STRING = (datasets.Value(dtype) for dtype in ("int64", "float64", "string"))
NAMED = datasets.ClassLabel(names=["cat", "dog"])


def _read(feature, values):
    dataset = datasets.Dataset.from_dict({"kind": values}, features=datasets.Features(kind=feature))
    return read_labels(dataset, "kind", "pets")


@pytest.mark.parametrize(
    ("feature", "values", "classes", "labels"),
    [
        (NAMED, [1, 0, 1], ["cat", "dog"], [1, 0, 1]),
        (NAMED, [1, 1], ["cat", "dog"], [1, 1]),
        (INT, [10, 9, 10], ["9", "10"], [1, 0, 1]),
        (datasets.Value("uint8"), [3, 0, 3], ["0", "3"], [1, 0, 1]),
        (FLOAT, [2.0, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        (STRING, ["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        # Text in tar shards: as numbers, and not 1, 10, 2.
        (STRING, ["10", "2", "1", "10"], ["1", "2", "10"], [2, 1, 0, 2]),
        (STRING, ["10", "2", "x"], ["10", "2", "x"], [0, 1, 2]),
        (STRING, ["1", "01", "a\0", "a"], ["01", "1", "a", "a\0"], [1, 0, 3, 2]),
        (datasets.Value("large_string"), ["b", "a"], ["a", "b"], [1, 0]),
        (datasets.Value("bool"), [True, False], ["False", "True"], [1, 0]),
    ],
)
def test_one_value_for_each_image_becomes_a_class(feature, values, classes, labels):
    found, indices = _read(feature, values)
    assert found == classes and indices.tolist() == labels and indices.dtype == np.int64


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (NAMED, [0, None, 1], "row 1 of pets has no label: column 'kind' is None"),
        (NAMED, [0, 1, -1], "row 2 of pets has no label: column 'kind' is -1"),
        (INT, [3, 4, None], "row 2 of pets has no label: column 'kind' is None"),
        (INT, [3, -1, 4], "row 1 of pets has no label: column 'kind' is -1"),
        (FLOAT, [3.0, float("nan")], "row 1 of pets has no label: column 'kind' is nan"),
        (FLOAT, [3.0, 0.5], "row 1 of pets names no class: column 'kind' is 0.5"),
        (FLOAT, [3.0, float("inf")], "row 1 of pets names no class: column 'kind' is inf"),
        (STRING, ["a", None], "row 1 of pets has no label: column 'kind' is None"),
        (STRING, ["a", " "], "row 1 of pets has no label: column 'kind' is ' '"),
        (datasets.Value("null"), [None, None], "row 0 of pets has no label: column 'kind' is None"),
        (datasets.List(INT), [[1, 3], [2]], r"row 0 of pets names no single class: column 'kind' holds .* \[1, 3\]"),
        (datasets.List(INT, length=3), [[0, 1, 0]], "row 0 of pets names no single class: column 'kind' holds"),
        ({"a": INT}, [{"a": 1}], "row 0 of pets names no single class: column 'kind' holds"),
        (datasets.Value("binary"), [b"cat"], "row 0 of pets names no single class: column 'kind' holds"),
    ],
)
def test_what_names_no_class_is_refused_by_column_and_row(feature, values, message):
    with pytest.raises(InputError, match=message) as caught:
        _read(feature, values)
    assert "\n" not in str(caught.value) and "?label=" in str(caught.value)


def test_a_class_label_beyond_the_names_is_refused():
    # `datasets` checks this where it writes the rows itself, and not in files that others wrote.
    plain = datasets.Dataset.from_dict({"kind": [0, 2]})
    features = datasets.Features(kind=NAMED)
    table = plain.data.table.replace_schema_metadata(None)
    beyond = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    with pytest.raises(InputError, match="row 1 of pets names none of the 2 classes: column 'kind' is 2"):
        read_labels(beyond, "kind", "pets")
