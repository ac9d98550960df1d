"""Charts of the report: what is drawn, and that any number of them stand in one page of either theme."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from tcae_diffusers.evaluation import report
from tcae_diffusers.evaluation.report.charts import (
    PALETTE,
    bar_chart,
    interval_chart,
    line_chart,
    scatter_chart,
    smooth,
)

NAME = "<b> & $x$, 漢"
STEPS = list(range(100))
CHARTS = {
    "line": lambda: line_chart({NAME: (STEPS, STEPS), "other": (STEPS, STEPS)}),
    "points": lambda: line_chart({NAME: ([1, 2], [3, 4]), "other": ([1], [2])}, "DiT steps", {NAME: [0.5, None]}),
    "bars": lambda: bar_chart({NAME: 3.0, "other": 9.0}, ("real against real", 1.5)),
    "intervals": lambda: interval_chart({NAME: (3.0, 0.5), "other": (4.0, None)}),
    "scatter": lambda: scatter_chart([(x, x % 7) for x in STEPS], [x % 2 for x in STEPS], [NAME, "other"]),
}


@pytest.fixture(params=list(CHARTS))
def kind(request):
    return request.param


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag == tag]


def texts(svg: str) -> list[str]:
    return [element.text for element in elements(svg, "text")]


def dots(svg: str) -> int:
    """Dots are lines without length."""
    return len(re.findall(r"M ([\d.]+ [\d.]+) L \1(?= M|\")", svg))


def test_a_chart_has_no_ids_so_several_fit_one_page(kind):
    names = {name for element in ElementTree.fromstring(CHARTS[kind]()).iter() for name in element.attrib}
    assert names <= {"class", "role", "aria-label", "viewBox", "font-family", "font-size", "stroke-linejoin"} | {
        "d",
        "x",
        "y",
        "style",
        "transform",
    }
    assert "url(" not in CHARTS[kind]()


def test_a_chart_takes_the_width_of_its_place_and_says_what_it_shows(kind):
    svg = ElementTree.fromstring(CHARTS[kind]())
    assert svg.tag == "svg" and svg.get("class") == "chart" and svg.get("role") == "img"
    assert re.fullmatch(r"0 0 (460|720) \d+(\.\d+)?", svg.get("viewBox"))
    assert ("2 classes" if kind == "scatter" else NAME) in svg.get("aria-label")


def test_names_are_text_whatever_they_hold(kind, recwarn):
    assert NAME in texts(CHARTS[kind]())
    assert not recwarn.list


def test_a_chart_is_the_same_whenever_and_under_whatever_matplotlibrc_it_is_drawn(kind):
    before, first = dict(matplotlib.rcParams), CHARTS[kind]()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "axes.grid": True}):
        assert CHARTS[kind]() == first


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    """WCAG 2.1, between 1 and 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_curves_and_text_show_on_light_and_on_dark_paper(kind):
    style = (Path(report.__file__).parent / "templates" / "report.html").read_text().split("</style>")[0]
    themes = [dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 2
    for theme in themes:
        assert min(contrast(color, theme["--paper"]) for color in PALETTE) >= 3
        assert min(contrast(theme[name], theme["--paper"]) for name in ("--ink", "--soft", "--accent")) >= 4.5
    # Whatever else has a colour of its own takes the page's.
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", CHARTS[kind]())) - {"none"}
    own = {color for color in colors if color.startswith("#")}
    assert kind == "scatter" or own <= set(PALETTE)
    assert all(re.match(r"var\((--\w+)", color)[1] in theme for theme in themes for color in colors - own)


def test_long_curves_are_averaged_over_the_pale_raw_one_and_measured_points_are_not():
    noisy = [step + (-1) ** step * 10 for step in STEPS]
    (raw, averaged) = (path for path in elements(line_chart({"a": (STEPS, noisy)}), "path") if is_curve(path))
    assert "opacity: 0.35" in raw.get("style") and "opacity" not in averaged.get("style")
    assert up_and_down(raw) > 3 * up_and_down(averaged)
    measured = line_chart({"a": (STEPS, noisy)}, intervals={"a": [1.0] * 100})
    assert len([path for path in elements(measured, "path") if is_curve(path)]) == 1
    assert dots(measured) == 100


def up_and_down(path: ElementTree.Element) -> float:
    """How far a curve moves vertically, all in all."""
    heights = [float(point.split()[1]) for point in re.split("[ML] ", path.get("d"))[1:]]
    return sum(abs(after - before) for before, after in itertools.pairwise(heights))


def is_curve(path: ElementTree.Element) -> bool:
    return path.get("d").count(" L ") >= 3 and "linecap: round" not in path.get("style")


def test_an_early_transient_does_not_press_the_rest_of_a_curve_flat():
    values = [1e6, *[1.0 + 0.01 * step for step in range(1, 400)]]
    svg = line_chart({"loss": (list(range(400)), values)})
    labels = [float(text) for text in texts(svg) if re.fullmatch(r"[\d.]+", text)]
    assert {1.0, 2.0, 3.0} <= set(labels)
    assert max(labels) == 300  # of the steps


def test_intervals_are_bars_and_lie_within_the_axis():
    svg = line_chart({"a": ([1, 2], [10.0, 10.0])}, intervals={"a": [5.0, None]})
    assert {"5.0", "10.0", "15.0"} <= set(texts(svg))
    bars = [path.get("d") for path in elements(svg, "path") if "stroke-width: 1.5" in path.get("style")]
    assert [abs(float(d.split()[2]) - float(d.split()[-1])) > 100 for d in bars] == [True]


def test_more_points_than_can_be_seen_are_left_out():
    steps = list(range(50_000))
    assert len(line_chart({"a": (steps, [(step * 7919) % 101 for step in steps])})) < 40_000
    assert dots(scatter_chart([(x, x % 9) for x in range(4000)], [0] * 4000, ["one"])) == 1334


@pytest.mark.parametrize("length", [5, 30, 58])
def test_names_in_a_legend_neither_overlap_nor_leave_the_chart(length):
    names = [f"{index}" * length for index in range(7)]
    svg = line_chart({name: ([0, 1], [0, 1]) for name in names})
    places = [(float(t.get("y")), float(t.get("x"))) for t in elements(svg, "text") if t.text in names]
    assert len(places) == 7 and all(x >= 0 and x + 5 * length <= 460 for _, x in places)
    for (y, x), (next_y, next_x) in zip(sorted(places), sorted(places)[1:], strict=False):
        assert next_y - y > 10 or next_x - x > 6 * length
    # Above the curves: the first tick of the value axis lies below all names.
    assert max(y for y, _ in places) < min(float(t.get("y")) for t in elements(svg, "text") if t.text not in names)


def test_the_floor_is_a_dashed_line_with_its_name():
    with_floor = bar_chart({"DiT": 300.0}, ("real against real", 115.0))
    assert "real against real 115" in texts(with_floor) and "stroke-dasharray" in with_floor
    assert "stroke-dasharray" not in bar_chart({"DiT": 300.0})


def test_more_curves_than_colours_differ_by_their_dashes():
    svg = line_chart({f"{k}": ([0, 1, 2, 3], [k, k + 1, k, k + 1]) for k in range(12)})
    assert len({path.get("style") for path in elements(svg, "path") if is_curve(path)}) == 12


def test_smoothing_neither_shifts_nor_scales():
    assert smooth([1.0] * 9, 4) == pytest.approx([1.0] * 9)
    assert smooth([float(x) for x in range(9)], 4) == pytest.approx(list(range(9)))


def test_a_flat_or_single_point_curve_can_be_drawn():
    assert dots(line_chart({"a": ([0], [1.0])})) == 1
    assert "<svg" in line_chart({"a": ([0, 1], [0.0, 0.0])})
    assert "no finite values" in line_chart({"a": ([0], [float("nan")])})
