"""The door to a trained model: `python -m fmnist_lab.predict`, or `load` from Python."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fmnist_lab import data, pictures, tracking
from fmnist_lab.classifier import Classifier, load
from fmnist_lab.errors import FULL_DISK, UserError, reported
from fmnist_lab.pictures import Picture, read_image
from fmnist_lab.system import process
from fmnist_lab.texts import line

if TYPE_CHECKING:
    from fmnist_lab.figures import Shown
    from fmnist_lab.jobs.confidence import Abstention

__all__ = ["Classifier", "app", "load", "main", "predict", "read_image"]

BATCH = 100  # Pictures that are read and predicted at once.
MOST_DRAWN = 60  # Photographs of a drawing.
DRAWN = (".png", ".pdf", ".svg")
PHOTOGRAPH = ("converted", "background", "negated")

app = App(
    name="python -m fmnist_lab.predict",
    help="Predict test images by index, or image files, with a model that a run has logged.",
    version_flags=(),
)


@app.default
def predict(
    *files: str,
    index: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (),
    model: str | None = None,
    best: str | None = None,
    store: str | None = None,
    top_k: int = 1,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    as_csv: Annotated[bool, Parameter(name="--csv", negative="")] = False,
    abstain: Annotated[
        tuple[float, ...] | None, Parameter(consume_multiple=(0, 1), negative="")
    ] = None,
    plot: Path | None = None,
    data_dir: str | None = None,
) -> None:
    """Predict images, and print each label with the model's confidence.

    Photographs are converted as the data set's own pictures were: the object is found, brought to
    the model's size and made light on dark. The exit code is 1 if some pictures cannot be read, 2
    if none can.

    Args:
        files: Image files of any size and common format, folders of them, and quoted patterns such
            as '*.png'. A file that has the model's size already, light on dark, is taken as it is.
        index: Test images by number, from 0; several may follow. With no file either, 0 and 12.
        model: A run, models:/NAME@ALIAS, models:/NAME/VERSION, a folder or a .keras file; left out,
            the newest finished run's.
        best: A metric, such as accuracy/validation: the model of the finished run that is best by
            it, of a sweep if --model names one.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        top_k: How many labels to print for an image.
        as_json: Print one JSON document.
        as_csv: Print comma-separated values, one line per image.
        abstain: Give calibrated confidences, abstain where they are too low, and say what that
            buys. A number is the share of images to answer, such as 0.8; left out, that of the
            threshold that is kept with the model, or 0.9.
        plot: Draw the images beside their probabilities into this file (.png, .pdf, .svg), at most
            60 photographs.
        data_dir: Folder with the data set's files, for test images.
    """
    with reported():
        index = index if files or index else (0, 12)
        # Errors in words, files and numbers are told before TensorFlow has started.
        _check_words(top_k, as_json and as_csv, plot)
        found, indexed = pictures.find(files), _test_images(index, data_dir)
        if len(found) == 1:
            pictures.check_readable(found[0])
        classifier = load(model, best=best, store=store)
        if index:
            _check_takes_test_images(classifier, index)
        rule = _abstention(classifier.uri, store, abstain)
        answers, unreadable, drawn = _predict(
            classifier, found, indexed, top_k, rule, plot is not None
        )
        for error in unreadable:
            print(f"error: {line(error)}", file=sys.stderr)
        if not answers:
            raise SystemExit(2)
        if as_json:
            reasons = [line(error) for error in unreadable]
            told = {"model": classifier.uri, "predictions": answers, "unreadable": reasons}
            bought = {"abstaining": rule.facts()} if rule else {}
            print(json.dumps(told | bought, indent=1))
        elif as_csv:
            _print_csv(answers)
        else:
            _print(answers, classifier.uri if model is None and best is None else "", rule)
        if plot:
            _draw(plot, drawn, classifier.class_names)
        if unreadable:
            raise SystemExit(1)


def _check_words(top_k: int, both: bool, plot: Path | None) -> None:
    """Refuse options that make no sense, or not together."""
    if top_k < 1:
        raise UserError(f"--top-k: received {top_k}, expected a whole number, 1 or more")
    if both:
        raise UserError("--csv: received --json as well, expected one of the two")
    if plot is not None and (plot.is_dir() or plot.suffix.lower() not in DRAWN):
        raise UserError(
            f"--plot: received '{plot}', expected a file's name that ends in {', '.join(DRAWN)}"
        )
    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"--plot: received '{plot}', but there is no folder {plot.parent}")


def _abstention(uri: str, store: str | None, coverage: Sequence[float] | None) -> Abstention | None:
    """Return when a model abstains, by the words of `--abstain`; None if these were not given."""
    if coverage is None:
        return None
    from fmnist_lab.jobs import confidence

    place = tracking.Store.locate(store, for_writing=False)
    return confidence.abstention(place, uri, *coverage)


Drawn = list[tuple[Picture, np.ndarray]]


def _predict(
    classifier: Classifier,
    files: Sequence[Path],
    indexed: Sequence[Picture],
    top_k: int,
    rule: Abstention | None,
    draws: bool,
) -> tuple[list[dict[str, Any]], list[UserError], Drawn]:
    """Return the answers to files and test images, the bad files, and what is to be drawn."""
    height, width, *channels = classifier.image_shape
    answers: list[dict[str, Any]] = []
    unreadable: list[UserError] = []
    drawn: Drawn = []
    colour = channels == [3]
    with _progress(len(files)) as advance:
        read = pictures.batches(files, (height, width), colour=colour, most=BATCH, on_read=advance)
        for batch in chain(read, [indexed] if indexed else []):
            unreadable += [each for each in batch if isinstance(each, UserError)]
            good = [each for each in batch if isinstance(each, Picture)]
            if not good:
                continue
            rows = classifier.predict_pixels([picture.pixels for picture in good])
            if rule:
                rows = rule.calibrated(rows)
            pairs = list(zip(good, rows, strict=True))
            given = [_answer(*pair, classifier.class_names, top_k) for pair in pairs]
            if rule:
                for answer, row in zip(given, rows, strict=True):
                    answer["abstained"] = rule.abstains(row)
            answers += given
            if draws:
                drawn += pairs if batch is indexed else pairs[: MOST_DRAWN - len(drawn)]
    return answers, unreadable, drawn


@contextmanager
def _progress(files: int) -> Iterator[Callable[[], None]]:
    """Show how many files are read, on a terminal, if there are many."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed} of {task.total} pictures"), BarColumn())
    quiet = files < 20 or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=files)
        yield lambda: progress.advance(task)


def _test_images(indices: Sequence[int], folder: str | None) -> list[Picture]:
    """Return test images of Fashion-MNIST by their numbers."""
    if not indices:
        return []
    dataset = data.load(folder)
    images, labels = dataset.test_images, dataset.test_labels
    for index in indices:
        if not 0 <= index < len(images):
            raise UserError(
                f"--index: received {index}, expected a test image from 0 to {len(images) - 1}"
            )
    return [Picture(f"test image {each}", images[each], int(labels[each])) for each in indices]


def _check_takes_test_images(classifier: Classifier, indices: Sequence[int]) -> None:
    """Refuse a model that was trained for other images than those of Fashion-MNIST."""
    if classifier.class_names != data.FASHION_MNIST.class_names:
        problem = f"knows other classes: {', '.join(classifier.class_names)}"
    elif classifier.image_shape[2:] == (3,):
        problem = "takes images in colour"
    else:
        return
    raise UserError(
        f"--index: received {' '.join(map(str, indices))}, which are grey test images of "
        f"Fashion-MNIST, but {classifier.uri} {problem}; give it image files"
    )


def _answer(
    picture: Picture, probabilities: np.ndarray, names: Sequence[str], top_k: int
) -> dict[str, Any]:
    """Return the most probable labels of an image, as `--json` prints them."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    answer: dict[str, Any] = {
        "image": picture.name,
        "predictions": [{"label": names[k], "confidence": float(probabilities[k])} for k in best],
        "truth": None if picture.label is None else names[picture.label],
    }
    if picture.photograph:
        found = picture.photograph
        answer |= {
            "converted": found.converted,
            "background": found.background,
            "negated": found.negated,
            "box": found.box,
            "size": found.size,
        }
    return answer


def _print(answers: Sequence[Mapping[str, Any]], newest: str, rule: Abstention | None) -> None:
    """Print one line per image, then the newest run's model, if that was used, and the rule."""
    named = [line(answer["image"]) for answer in answers]
    width = max(map(len, named))
    for name, answer in zip(named, answers, strict=True):
        guesses = "  ".join(f"{g['label']} {g['confidence']:.1%}" for g in answer["predictions"])
        truth = answer["truth"]
        right = truth == answer["predictions"][0]["label"]
        note = "" if truth is None else "  (right)" if right else f"  (wrong: {truth})"
        if answer.get("converted"):
            note = f"  ({_ground(answer['background'], answer['negated'])})"
        if answer.get("abstained"):
            guesses = f"abstains: {guesses}"
        print(f"{name:<{width}}  {guesses}{note}")
    if newest:
        print(f"These are the predictions of the newest run's model: {newest}")
    if rule:
        print(rule.sentence())


def _ground(background: str, negated: bool) -> str:
    return f"on {background}, {'negated' if negated else 'not negated'}"


def _print_csv(answers: Sequence[Mapping[str, Any]]) -> None:
    """Print a line of names and one line per image."""
    ranks = ["", *(f"_{rank}" for rank in range(2, len(answers[0]["predictions"]) + 1))]
    table = csv.writer(sys.stdout, lineterminator="\n")
    guesses = [f"{name}{rank}" for rank in ranks for name in ("label", "confidence")]
    known = (*PHOTOGRAPH, *(["abstained"] if "abstained" in answers[0] else []))
    table.writerow(["image", *guesses, "truth", *known, "left", "top", "right", "bottom"])
    for answer in answers:
        values = [value for guess in answer["predictions"] for value in guess.values()]
        facts = [answer.get(name, "") for name in known]
        box = answer.get("box", [""] * 4)
        table.writerow([line(answer["image"]), *values, answer["truth"] or "", *facts, *box])


def _draw(file: Path, drawn: Drawn, names: Sequence[str]) -> None:
    """Draw images beside their probabilities into a file, photographs with what was found."""
    from fmnist_lab import figures

    images, rows = [picture for picture, _ in drawn], np.stack([row for _, row in drawn])
    if any(each.photograph and each.photograph.converted for each in images):
        figure = figures.photograph_predictions([_shown(each) for each in images], rows, names)
    else:
        columns = min(3, len(images))
        figure = figures.prediction_grid(
            np.stack([each.pixels for each in images]),
            rows,
            [each.label for each in images],
            names,
            -(-len(images) // columns),
            columns,
        )
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in FULL_DISK:
            raise
        raise UserError(f"--plot: received '{file}', which cannot be written: {error}") from None


def _shown(picture: Picture) -> Shown:
    """Return a picture for the drawing; an image of a data set is its own original."""
    from fmnist_lab.figures import Shown

    found = picture.photograph
    if not found:
        pixels = picture.pixels
        original = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2)
        return Shown(line(picture.name), "A test image.", original, (0, 0, 1, 1), pixels)
    note = f"{found.size[0]}x{found.size[1]} pixels, taken as they are"
    if found.converted:
        note = f"{found.size[0]}x{found.size[1]} {_ground(found.background, found.negated)}"
    left, top, right, bottom = found.box
    width, height = found.size
    box = (left / width, top / height, right / width, bottom / height)
    return Shown(line(picture.name), note, found.thumbnail, box, picture.pixels)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    process.run(main)
