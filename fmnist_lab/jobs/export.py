"""A model in another format; the file stays only if its own runtime agrees with Keras."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmnist_lab import data, tracking
from fmnist_lab.config import schema
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build, kept
from fmnist_lab.system import durable
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Apart:
    """How far the answers of two models to the same images are apart.

    Attributes:
        probability: The largest difference of a probability.
        labels: The number of images with different labels.
    """

    probability: float
    labels: int

    @classmethod
    def of(cls, one: np.ndarray, other: np.ndarray) -> Apart:
        """Compare probabilities, both of shape (n, classes)."""
        return cls(
            float(np.abs(one.astype(float) - other).max(initial=0)),
            int((one.argmax(axis=1) != other.argmax(axis=1)).sum()),
        )


@dataclass(frozen=True)
class Exported:
    """A model in another format, checked.

    Attributes:
        files: What was written, the named file or folder last.
        size: Bytes of all of it.
        images: The number of test images that it was compared on.
        apart: From the Keras model in the precision that the file computes in.
        rounding: From the model as it was trained, if that computes in a lower precision; else
            None.
    """

    files: list[Path]
    size: int
    images: int
    apart: Apart
    rounding: Apart | None


def test_images(
    store: tracking.Store, chosen: tracking.ChosenModel, model: keras.Model
) -> np.ndarray:
    """Return the images that a model was tested on.

    Args:
        store: The store.
        chosen: The model, as it was named.
        model: The model.

    Returns:
        uint8, (n, height, width) or (n, height, width, 3).

    Raises:
        UserError: The run's data cannot be loaded, or it is not known what the model is for.
    """
    run = tracking.maker(store, chosen)
    dataset = _data_of(store, run) if run else data.load()
    shape, classes = model.input_shape[1:], model.output_shape[-1]
    if shape != dataset.test_images.shape[1:] or classes != len(dataset.class_names):
        raise UserError(
            f"received {chosen.uri}, a model of images {shape} with {classes} classes, which no "
            "run here has made, so that there are no test images to check it on; expected the "
            "model of a run"
        )
    return dataset.test_images


def _data_of(store: tracking.Store, run: tracking.RunRef) -> data.Dataset:
    """Return the data set of a run. Nothing of its config is built but that."""
    values = kept.read(store, run, allowed=None)
    section = schema.check_section(schema.sections(values)["data"], values["data"], "data.")
    assert isinstance(section, schema.Data)
    seed = values.get("seed")
    return build.load_section(section, seed if isinstance(seed, int) else 0)


def export(
    model: keras.Model,
    name: str,
    output: Path,
    images: np.ndarray,
    *,
    within: float,
    overwrite: bool = False,
) -> Exported:
    """Write a model in a format, and check the file before it gets its name.

    Args:
        model: From uint8 images to probabilities.
        name: One of `models.portable.FORMATS`.
        output: The file, or folder, to be made.
        images: uint8 images to compare the two on, at least one.
        within: The largest difference of a probability that is accepted.
        overwrite: Whether a file that is there is replaced.

    Raises:
        UserError: The format cannot express the model, the file is there already or cannot be
            written, or its runtime gives other answers than Keras.
    """
    from fmnist_lab.models import portable
    from fmnist_lab.training import engines

    chosen = portable.FORMATS[name]
    check_output(output, name, overwrite=overwrite)
    written = model if chosen.any_precision else portable.in_float32(model)
    expected = engines.predict(written, images)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        made = Path(folder, output.name)
        portable.write(written, name, made)
        apart = Apart.of(portable.load(name, made)(images), expected)
        if apart.labels or not apart.probability <= within:
            raise UserError(
                f"the model in format {name} was not kept: of {counted(len(images), 'test image')} "
                f"{apart.labels:,} have another label than Keras gives them, and probabilities "
                f"differ by up to {apart.probability:.2g}, expected no other label and no more "
                f"than {within:g}; --within accepts a larger difference"
            )
        files = chosen.names(output)
        for each in chosen.names(made):
            _give_name(each, output.with_name(each.name))
    size = sum(_size(each) for each in files)
    rounding = None
    if written is not model:
        rounding = Apart.of(engines.predict(model, images), expected)
    return Exported(files, size, len(images), apart, rounding)


def check_output(output: Path, name: str, *, overwrite: bool) -> None:
    """Refuse a file's name that does not fit its format, or a file that is there.

    Args:
        output: The file or folder.
        name: One of `models.portable.FORMATS`.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        UserError: The name does not fit, or the file is there.
    """
    from fmnist_lab.models import portable

    suffix = portable.FORMATS[name].suffix
    if suffix and output.suffix != suffix:
        raise UserError(
            f"--output: received '{output}', expected a name that ends in {suffix} for the format "
            f"{name}"
        )
    for each in portable.FORMATS[name].names(output):
        if each.exists() and not overwrite:
            raise UserError(
                f"--output: received '{output}', but {each} is there already; choose another name, "
                "or add --overwrite"
            )
        if each.is_dir() and suffix:
            raise UserError(f"--output: received '{output}', a folder, expected a file's name")
        if each.exists() and not suffix and not (each / "saved_model.pb").is_file():
            raise UserError(
                f"--output: received '{output}', which is there and no SavedModel, so it is not "
                "replaced; choose another name"
            )


def _give_name(made: Path, final: Path) -> None:
    """Move a file or folder to its place, in the stead of what was there."""
    if made.is_dir():
        durable.sync_tree(made)
        if final.exists():
            # The folder that was there is removed with that of the new one.
            final.rename(made.with_name("replaced"))
        made.rename(final)
        durable.sync_folder(final.parent)
        return
    durable.replace(made, final)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size
