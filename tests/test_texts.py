"""What anyone may have written: made fit to be shown, and bounded before it is read."""

import math

import pandas as pd
import pytest
from hostile import BROKEN, GOOD, LABELS, alias_bomb

from fmnist_lab import texts
from fmnist_lab.errors import UserError
from fmnist_lab.predict import read_image
from fmnist_lab.studies import frames, report
from fmnist_lab.tracking import bounds


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("h128 e5 s0", "h128 e5 s0"),
        (
            "caf\u00e9 cafe\u0301 \u65e5\u672c \U0001f600",
            "caf\u00e9 cafe\u0301 \u65e5\u672c \U0001f600",
        ),
        ("\U0001f468\u200d\U0001f4bb", "\U0001f468\u200d\U0001f4bb"),  # one picture of two
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("a\r\nb\tc\u2028d\x85e", "a b c d e"),
        ("\x00\x7f\x9bx", "x"),
        ("\u202elive\u202c\u2066\u200f", "live"),
        (None, ""),
    ],
)
def test_a_text_is_one_line_that_a_terminal_does_not_act_on(text, shown):
    assert texts.line(text) == shown


def test_a_long_text_is_cut_and_line_breaks_stay_where_they_are_wanted():
    assert texts.line("x" * 8000, 10) == "x" * 9 + "…"
    assert texts.lines("a\r\n\x1bb\n\tc") == "a\nb\n    c"


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "1" * 10, "\u0663", " 1", None, 1])
def test_what_is_no_number_of_a_job_is_none(text):
    assert texts.whole_number(text) is None
    assert texts.whole_number("00012") == 12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("[256, 128]", (256, 128)), ("[256]", 256), ("[]", ()), ("[0.5]", 0.5), ("-0.03", -0.03)),
        *(("3", 3), ("1e-3", 0.001), ("nan", None), ("1e400", None), ("9" * 400, "9" * 400)),
        *((text, text) for text in ("[1,", "[1,]", "[[1], [2]]", "[a]", "True", "[" * 200_000)),
    ],
)
def test_a_param_is_a_number_layers_or_text_however_it_nests(text, value):
    assert frames.value_of(text) == value


def test_no_cell_of_a_table_is_a_formula_and_numbers_stay_numbers(tmp_path):
    runs = pd.DataFrame(
        {
            "run_id": list("abcd"),
            "name": ["=1+1", "+x", "-0.03", "@x"],
            "status": "FINISHED",
            "seed": "-1",
            "model": ["mlp", "=cmd|' /C calc'!A0", "mlp", "mlp"],
            "-x.y": ["-0.03", "-5", "1", "2"],
            "accuracy/test": 0.8,
            "accuracy/gap": -0.03,
        }
    )
    report.write(runs, pd.DataFrame(), tmp_path, title="x", command="x")
    for name in ("results.csv", "summary.csv"):
        rows = pd.read_csv(tmp_path / name, dtype=str)
        cells = [*rows.columns, *rows.to_numpy(str).ravel()]
        assert "'=cmd|' /C calc'!A0" in cells
        assert "-0.03" in cells
        for cell in cells:
            if cell.startswith(("=", "+", "-", "@")):
                assert math.isfinite(float(cell))
    assert set(pd.read_csv(tmp_path / "results.csv")["name"]) == {"'=1+1", "'+x", "'-0.03", "'@x"}


def test_arrays_are_read_or_refused_before_they_take_memory():
    read = bounds.read_arrays(GOOD, "probabilities", "labels")
    assert [each.shape for each in read] == [(50, 10), (50,)]
    assert (read[1] == LABELS).all()
    for content in (b"", GOOD[:100], *BROKEN["predictions.npz"][-5:]):
        with pytest.raises(ValueError, match=r"\w"):
            bounds.read_arrays(content, "probabilities", "labels")


@pytest.mark.parametrize("text", ["a: 1\nb: [1, 2]\n", "", "x: ${y}"])
def test_a_usual_yaml_is_taken(text):
    bounds.check_yaml(text)


def test_a_yaml_of_copies_is_refused():
    with pytest.raises(ValueError, match="alias"):
        bounds.check_yaml(alias_bomb())


def test_a_picture_of_too_many_pixels_is_one_line(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"x\.png: the picture has more than 64 million pixels"):
        read_image(tmp_path / "x.png")
