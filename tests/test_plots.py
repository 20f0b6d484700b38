"""Figures as a reader sees them: their words, colours, and that nothing covers anything."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import style
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from pictures import assert_legible, make_predictions, png, texts, words

from fmnist_lab import evaluation, figures
from fmnist_lab.figures import style as look

NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
LONG = tuple(f"An exceedingly long class name costing ${i} and a_b^c" for i in range(10))
NAN, INF = float("nan"), float("inf")


def make_images(n, height=28, width=28):
    return np.random.default_rng(0).integers(0, 256, (n, height, width)).astype(np.uint8)


def make_history(epochs, **more):
    steps = np.arange(1, epochs + 1)
    history = {
        "epoch": steps.tolist(),
        "accuracy/train": (1 - 0.3 / steps).tolist(),
        "accuracy/test": (0.9 - 0.2 / steps).tolist(),
        "accuracy/gap": [0.0] * epochs,
        "loss/train": (0.8 / steps).tolist(),
        "loss/test": (0.5 + 0.4 / steps).tolist(),
    }
    return history | more


def two_probabilities(sure, classes=10, place=9, other=5):
    """Probabilities with `sure` at `place` and the rest at `other`."""
    probabilities = np.zeros(classes, np.float32)
    probabilities[place], probabilities[other] = sure, 1 - sure
    return probabilities


def every_figure(names=NAMES):
    classes = len(names)
    images = make_images(30)
    probabilities, labels = make_predictions(400, classes)
    return {
        "first_image": figures.first_image(images[0], names[0]),
        "image_grid": figures.image_grid(images, labels[:30], names),
        "single_prediction": figures.single_prediction(images[0], probabilities[0], 1, names),
        "prediction_grid": figures.prediction_grid(images, probabilities[:30], labels[:30], names),
        "learning_curves": figures.learning_curves(make_history(7)),
        "mislabelled": figures.mislabelled(
            {
                "epoch": [1, 2, 3],
                "mislabelled/memorised": [0.02, NAN, 0.6],
                "mislabelled/seen_through": [0.7, NAN, 0.3],
            }
        ),
        "confusion_matrix": figures.confusion_matrix(
            evaluation.confusion_matrix(probabilities, labels, classes), names
        ),
        "reliability_diagram": figures.reliability_diagram(
            evaluation.calibration(probabilities, labels)
        ),
        "confident_mistakes": figures.confident_mistakes(
            images, probabilities[:30], labels[:30], names
        ),
    }


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def note(figure):
    """The small print below a figure, whose lines are drawn from the last upwards."""
    return " ".join(line.get_text() for line in figure.artists[:0:-1])


def colour_of(figure, word):
    (text,) = [text for text in texts(figure) if text.get_text() == word]
    return to_hex(text.get_color())


def bar_colours(figure):
    """Colours of the bars: the last boxes drawn on the page."""
    boxes = [a for a in figure.axes[0].collections if isinstance(a, PolyCollection)]
    return [to_hex(colour) for colour in boxes[-1].get_facecolor()]


@pytest.fixture(scope="module")
def every():
    return every_figure()


def test_every_figure_is_a_small_png_and_rcparams_are_untouched():
    before = matplotlib.rcParams.copy()
    files = {name: png(figure) for name, figure in every_figure().items()}
    assert matplotlib.rcParams.copy() == before
    for name, file in files.items():
        assert file.startswith(b"\x89PNG\r\n"), name
        assert len(file) < 250_000 or "image" in name, name  # Noise does not compress.


def test_every_figure_has_a_title_first(every):
    for figure in every.values():
        first = figure.artists[0]
        assert first.get_weight() == "bold"
        assert first.get_window_extent().x0 < 20


def test_nothing_overlaps_or_leaves_the_page(every):
    for figure in every.values():
        assert_legible(figure)


@pytest.mark.parametrize("names", [("Top", "Boot"), LONG, [f"class {i}" for i in range(20)]])
def test_any_number_and_length_of_names(names):
    for figure in every_figure(names).values():
        assert_legible(figure)


def test_pyplot_is_not_imported_and_rcparams_are_untouched():
    script = (
        "import sys, io, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "import numpy as np\n"
        "from fmnist_lab import figures\n"
        "figure = figures.first_image(np.zeros((28, 28), np.uint8), 'Bag')\n"
        "figure.savefig(io.BytesIO(), format='png')\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print(*(name for name in ('tensorflow', 'mlflow', 'pandas') if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_style_sheet_of_the_caller_changes_nothing():
    def draw():
        yield pixels(figures.learning_curves(make_history(4)))
        yield pixels(figures.prediction_grid(make_images(2), *make_predictions(2), NAMES))

    plain = list(draw())
    with style.context(["dark_background", "ggplot"]):
        styled = list(draw())
    for one, other in zip(plain, styled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_appear_dark_on_white_pixel_by_pixel():
    image = np.zeros((28, 28), np.uint8)
    image[10, 20] = 255
    figure = figures.image_grid(image[None], np.array([3]), NAMES)
    (artist,) = figure.axes[0].images
    box = artist.get_window_extent()
    assert box.width == pytest.approx(4 * 28)  # A whole number of dots a pixel.
    page = pixels(figure)[..., :3]
    left, top = round(box.x0), round(page.shape[0] - box.y1)
    tile = page[top : top + 112, left : left + 112]
    dark = np.argwhere(tile[2:-2, 2:-2].max(axis=2) < 10) + 2
    assert dark.min(axis=0).tolist() == [40, 80]
    assert dark.max(axis=0).tolist() == [43, 83]


def test_first_image_shows_raw_values_with_their_scale():
    figure = figures.first_image(make_images(1)[0] // 2, "Ankle boot")
    assert "First training image: Ankle boot" in words(figure)
    assert {"0", "255", "Pixel value"} <= set(words(figure))
    assert all(image.get_clim() == (0, 255) for image in figure.axes[0].images)


def test_image_grid_writes_each_class_below_its_image():
    labels = np.arange(10, dtype=np.uint8)
    figure = figures.image_grid(make_images(10), labels, NAMES, rows=2, columns=5)
    for artist, name in zip(figure.axes[0].images, NAMES, strict=True):
        (text,) = [text for text in texts(figure) if text.get_text() == name]
        box, under = artist.get_window_extent(), text.get_window_extent()
        assert under.y1 < box.y0 < under.y1 + 20
        assert abs(under.x0 - box.x0) < 4


def test_grids_show_at_most_rows_times_columns():
    images, (probabilities, labels) = make_images(30), make_predictions(30)
    for figure, count in (
        (figures.image_grid(images, labels, NAMES), 25),
        (figures.prediction_grid(images, probabilities, labels, NAMES), 15),
        (figures.confident_mistakes(images, probabilities, labels, NAMES), 15),
        (figures.image_grid(images[:3], labels[:3], NAMES), 3),
        (figures.confident_mistakes(images[:7], probabilities[:7], labels[:7], NAMES), 7),
    ):
        assert len(figure.axes[0].images) == count
        assert_legible(figure)


def test_a_right_prediction_is_blue():
    figure = figures.single_prediction(make_images(1)[0], two_probabilities(0.95), 9, NAMES)
    assert colour_of(figure, "Ankle boot 95% (Ankle boot)") == look.BLUE
    assert bar_colours(figure) == [look.GREY] * 9 + [look.BLUE]
    assert colour_of(figure, "Ankle boot") == look.BLUE
    assert colour_of(figure, "95%") == look.BLUE


def test_a_wrong_prediction_is_red_and_the_true_class_blue():
    figure = figures.single_prediction(make_images(1)[0], two_probabilities(0.66), 5, NAMES)
    assert colour_of(figure, "Ankle boot 66% (Sandal)") == look.RED
    expected = [look.GREY] * 10
    expected[9], expected[5] = look.RED, look.BLUE
    assert bar_colours(figure) == expected
    assert set(NAMES) <= set(words(figure))
    assert {"66%", "34%"} <= set(words(figure))


def test_bars_are_as_long_as_the_probabilities():
    probabilities = make_predictions(1)[0][0]
    figure = figures.single_prediction(make_images(1)[0], probabilities, 0, NAMES)
    bars = [a for a in figure.axes[0].collections if isinstance(a, PolyCollection)][-1]
    lengths = [np.ptp(path.vertices[:, 0]) for path in bars.get_paths()]
    np.testing.assert_allclose(np.array(lengths) / sum(lengths), probabilities, atol=1e-6)


def test_prediction_grid_captions_and_colours():
    probabilities = np.stack([two_probabilities(0.95), two_probabilities(0.66)])
    figure = figures.prediction_grid(make_images(2), probabilities, np.array([9, 5]), NAMES)
    assert colour_of(figure, "Ankle boot 95% (Ankle boot)") == look.BLUE
    assert colour_of(figure, "Ankle boot 66% (Sandal)") == look.RED
    colours = bar_colours(figure)
    assert (colours[9], colours[19], colours[15]) == (look.BLUE, look.RED, look.BLUE)
    assert colours.count(look.GREY) == 17


def test_prediction_grid_names_the_bars_of_every_column_once():
    probabilities, labels = make_predictions(5)
    figure = figures.prediction_grid(make_images(5), probabilities, labels, NAMES)
    assert words(figure).count("Trouser") == 3


def test_long_names_are_cut_and_dollars_are_not_formulas():
    figure = figures.prediction_grid(make_images(1), *make_predictions(1), LONG)
    (caption,) = [word for word in words(figure) if "% (" in word]
    assert caption.count("…") == 2
    figure = figures.image_grid(make_images(1), np.array([0]), ["$x^2$ coat"])
    assert "$x^2$ coat" in words(figure)
    assert not next(t for t in texts(figure) if "$" in t.get_text()).get_parse_math()


def test_learning_curves_state_the_final_gap_and_shade_it():
    figure = figures.learning_curves(
        {
            "epoch": [1, 2],
            "accuracy/train": [0.5, 0.9],
            "accuracy/test": [0.5, 0.8],
            "loss/train": [1.0, 0.25],
            "loss/test": [1.0, 0.75],
        }
    )
    assert words(figure).count("gap 0.100") == 1
    assert words(figure).count("gap 0.500") == 1
    assert {"train 0.900", "test 0.800", "train 0.250", "test 0.750"} <= set(words(figure))
    assert colour_of(figure, "train 0.900") == look.BLUE
    assert colour_of(figure, "test 0.800") == look.RED
    for axes in figure.axes:
        (shade,) = axes.collections
        assert shade.get_paths()[0].contains_point(
            (1.9, np.mean([line.get_ydata()[1] for line in axes.lines[:2]]))
        )


def test_learning_curves_draw_fit_dashed_and_validation_apart():
    figure = figures.learning_curves(
        make_history(
            3,
            **{
                "accuracy/fit": [0.6, 0.8, 0.85],
                "loss/fit": [1.0, 0.5, 0.4],
                "accuracy/validation": [0.7, 0.8, 0.83],
                "loss/validation": [0.9, 0.7, 0.6],
            },
        )
    )
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata().tolist() for line in dashed] == [[0.6, 0.8, 0.85]]
    assert dashed[0].get_linewidth() < 1
    assert {"fit 0.850", "validation 0.830"} <= set(words(figure))
    assert_legible(figure)


def test_wrong_labels_are_red_and_have_curves_of_their_own(every):
    wrong = np.array([False, True, False])
    labels = np.array([0, 1, 2])
    figure = figures.image_grid(make_images(3), labels, NAMES, wrong=wrong)
    assert [colour_of(figure, NAMES[label]) == look.RED for label in labels] == wrong.tolist()
    assert "made wrong" in note(figure)
    assert {"memorised 0.600", "seen through 0.300", "other 0.100"} <= set(
        words(every["mislabelled"])
    )
    learnt = every["mislabelled"].axes[0].lines[0]
    np.testing.assert_array_equal(learnt.get_xydata(), [[1, 0.02], [3, 0.6]])
    clean = {"accuracy/train_clean": [0.8, 0.9, 0.7], "loss/train_clean": [0.5, 0.4, 0.6]}
    figure = figures.learning_curves(make_history(3, **clean))
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata().tolist() for line in dotted] == [[0.8, 0.9, 0.7]]
    assert {"true labels 0.700", "true labels 0.600"} <= set(words(figure))
    assert_legible(figure)


def test_what_was_measured_last_is_drawn_at_the_chosen_epoch():
    """Epoch 2 was not evaluated; the last figures are of its weights, which were put back."""
    nan = float("nan")
    history = {
        "epoch": [1, 2, 3],
        "accuracy/train": [0.5, nan, 0.8],
        "accuracy/test": [0.5, nan, 0.7],
        "accuracy/fit": [0.4, 0.6, 0.9],
        "loss/train": [1.0, nan, 0.5],
        "loss/test": [1.0, nan, 0.75],
    }
    figure = figures.learning_curves(history, chosen=2)
    train, test, fit, bracket = figure.axes[0].lines
    np.testing.assert_array_equal(train.get_ydata(), [0.5, 0.8, nan])
    np.testing.assert_array_equal(test.get_ydata(), [0.5, 0.7, nan])
    np.testing.assert_array_equal(fit.get_ydata(), [0.4, 0.6, 0.9])
    assert list(bracket.get_xdata()) == [2, 2]
    assert {"train 0.800", "test 0.700", "gap 0.100", "gap 0.250", "fit 0.600"} <= set(
        words(figure)
    )
    assert "Labels: epoch 2, chosen." in note(figure)
    assert_legible(figure)


@pytest.mark.parametrize("epochs", [1, 2, 15, 200])
def test_epoch_ticks_are_whole_numbers(epochs):
    figure = figures.learning_curves(make_history(epochs))
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) and 1 <= tick <= epochs for tick in ticks)
    assert_legible(figure)


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        ([0.5, NAN, NAN], [0.6, 0.7, NAN], {"train nan", "test nan", "gap nan"}),
        ([0.5, 0.4, 0.3], [0.6, INF, INF], {"train 0.300", "test inf", "gap nan"}),
        ([NAN] * 3, [NAN] * 3, {"train nan", "test nan", "gap nan"}),
        ([1.0, 1e5, 4e7], [1.0, 2e5, 6e7], {"train 4e+07", "test 6e+07", "gap 2e+07"}),
        ([1.0, 0.0, 0.0], [1.0, 2e5, 6e7], {"train 0.000", "test 6e+07", "gap 6e+07"}),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], {"train 0.500", "test 0.500", "gap 0.000"}),
    ],
)
def test_a_run_that_diverged_or_stands_still_is_drawn(train, test, shown):
    figure = figures.learning_curves(make_history(3) | {"loss/train": train, "loss/test": test})
    assert shown <= set(words(figure))
    assert_legible(figure)


@pytest.mark.parametrize(
    "history",
    [
        {},
        make_history(0),
        make_history(3) | {"loss/test": [1.0]},
        {key: values for key, values in make_history(3).items() if key != "accuracy/train"},
        make_history(3) | {"loss/fit": [1.0]},
    ],
)
def test_an_incomplete_history_is_refused(history):
    with pytest.raises(ValueError, match=r"Received: .+"):
        figures.learning_curves(history)


def test_confusion_matrix_shows_counts_and_lets_mistakes_stand_out():
    matrix = np.array([[900, 100, 0], [10, 990, 0], [0, 0, 0]])
    figure = figures.confusion_matrix(matrix, ["Shirt", "Coat", "Bag"])
    assert {"900", "100", "10", "990"} <= set(words(figure))
    assert "0" not in words(figure)
    cells = figure.axes[0].collections[-1].get_facecolor()[:, :3]
    assert to_hex(cells[1]) == look.RED  # The worst mistake, though only a tenth of its row.
    ink = 1 - cells.min(axis=1)
    assert ink[1] > ink[0] > ink[3] > 0
    assert ink[2] == 0
    assert cells[0, 2] > cells[0, 0]  # Right is bluish.
    assert cells[3, 0] > cells[3, 2]  # Wrong is reddish.


def test_one_mistake_in_a_thousand_is_no_disaster():
    figure = figures.confusion_matrix(np.array([[999, 1], [0, 1000]]), ["Shirt", "Coat"])
    cells = figure.axes[0].collections[-1].get_facecolor()[:, :3]
    assert 0 < 1 - cells[1].min() < 0.05


def test_reliability_diagram_states_the_error():
    probabilities, labels = make_predictions(500)
    calibration = evaluation.calibration(probabilities, labels)
    figure = figures.reliability_diagram(calibration)
    said = note(figure)
    assert f"Expected calibration error (ECE): {calibration.ece:.3f}" in said
    assert "over 500 images" in said
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim() == (0, 1)
    (tops,) = [c for c in above.collections if not isinstance(c, PolyCollection)]
    heights = [segment[0][1] for segment in tops.get_segments()]
    np.testing.assert_allclose(heights, calibration.accuracy[calibration.count > 0])


def test_reliability_of_a_diverged_model():
    probabilities, labels = make_predictions(5)
    figure = figures.reliability_diagram(evaluation.calibration(probabilities * NAN, labels))
    assert "(ECE): nan" in note(figure)
    assert_legible(figure)


def test_confident_mistakes_name_both_classes():
    probabilities = np.stack([two_probabilities(0.98), two_probabilities(0.9, place=2)])
    figure = figures.confident_mistakes(make_images(2), probabilities, np.array([5, 4]), NAMES)
    assert colour_of(figure, "Ankle boot 98%") == look.RED
    assert colour_of(figure, "(Sandal)") == look.BLUE
    assert {"Pullover 90%", "(Coat)"} <= set(words(figure))
    assert_legible(figure)


def test_no_mistakes_at_all_is_said():
    nothing = make_images(0), np.zeros((0, 10), np.float32), np.zeros(0, np.uint8)
    figure = figures.confident_mistakes(*nothing, NAMES)
    assert "None: every prediction is right." in words(figure)
    assert png(figure).startswith(b"\x89PNG")
    assert_legible(figure)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 32), (300, 500), (3, 400)])
def test_any_image_size(height, width):
    images, (probabilities, labels) = make_images(4, height, width), make_predictions(4)
    for figure in (
        figures.first_image(images[0], "Bag"),
        figures.image_grid(images, labels, NAMES),
        figures.single_prediction(images[0], probabilities[0], labels[0], NAMES),
        figures.prediction_grid(images, probabilities, labels, NAMES, columns=1),
        figures.confident_mistakes(images, probabilities, labels, NAMES),
    ):
        assert_legible(figure)
        assert max(figure.canvas.get_width_height()) < 1500


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.first_image(make_images(1), "Bag"),
        lambda: figures.first_image(make_images(1)[0] / 255, "Bag"),
        lambda: figures.image_grid(make_images(3), np.zeros(2, np.uint8), NAMES),
        lambda: figures.image_grid(make_images(1), np.array([2]), ["a", "b"]),
        lambda: figures.single_prediction(make_images(1)[0], two_probabilities(0.9), 9, NAMES[:9]),
        lambda: figures.prediction_grid(make_images(3), *make_predictions(2), NAMES),
        lambda: figures.confident_mistakes(make_images(2), *make_predictions(2, 9), NAMES),
        lambda: figures.confusion_matrix(np.eye(3), NAMES),
    ],
)
def test_what_does_not_fit_is_refused_and_named(call):
    with pytest.raises(ValueError, match=r"Received: .+"):
        call()


def test_the_box_of_an_object_is_seen_on_a_photograph_of_its_own_colour():
    from fmnist_lab.figures.photographs import Shown, photograph_predictions

    red = np.full((40, 40, 3), (0xCC, 0x33, 0x11), np.uint8)
    seen = np.zeros((28, 28), np.uint8)

    def light(box):
        figure = photograph_predictions(
            [Shown("red", "", red, box, seen)], np.eye(10)[:1], list("abcdefghij")
        )
        return (pixels(figure)[..., :3] > 150).all(axis=-1).sum()

    # A box of no size is a point: the rest of the picture is the same.
    assert light((0.2, 0.2, 0.8, 0.8)) > light((0.5, 0.5, 0.5, 0.5)) + 100
