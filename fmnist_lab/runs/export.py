"""`export`: a model in a format that other programs run, checked by its own runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.jobs import export as exports
from fmnist_lab.models import portable
from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import counted, in_bytes
from fmnist_lab.training import runtime

Name = Literal["keras", "saved_model", "onnx", "litert", "openvino"]


def export(
    model: str | None = None,
    /,
    *,
    format: Annotated[Name, Parameter(name="--format")],
    output: Path | None = None,
    best: str | None = None,
    overwrite: bool = False,
    within: Annotated[float, Parameter(show_default=True)] = 1e-5,
    store: str | None = None,
) -> None:
    """Write a model in a format that other programs run: ONNX, LiteRT, OpenVINO, TensorFlow, Keras.

    The file takes raw uint8 images and returns probabilities, as the Keras model does. The format's
    own runtime loads it and predicts all test images of the run before the file gets its name.

    Args:
        model: A run, models:/NAME@ALIAS, models:/NAME/VERSION, a folder or a .keras file; left out,
            the newest finished run's.
        format: keras, saved_model, onnx, litert or openvino.
        output: The file, or for saved_model the folder; left out, the run's name in this folder.
        best: A metric, such as accuracy/validation: the model of the finished run that is best by
            it, of a sweep if one is named.
        overwrite: Replace a file that is there.
        within: The largest difference of a probability from Keras' that is accepted.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
    """
    with reported():
        portable.check_installed(format)
        if not 0 <= within <= 1:
            raise UserError(f"--within: received {within}, expected a number from 0 to 1")
        place = tracking.Store.locate(store, for_writing=False)
        chosen = tracking.choose_model(place, model, best=best)
        output = output or Path(f"{_file_name(place, chosen)}{portable.FORMATS[format].suffix}")
        exports.check_output(output, format, overwrite=overwrite)
        console = printout()
        for remark in chosen.remarks:
            console.print(remark, markup=False, soft_wrap=True)
        runtime.start()
        from fmnist_lab.models import saved

        loaded, _ = tracking.load_model(chosen.uri, place, saved.load)
        images = exports.test_images(place, chosen, loaded)
        made = exports.export(loaded, format, output, images, within=within, overwrite=overwrite)
        shape = ", ".join(["n", *map(str, images.shape[1:])])
        aligned(
            console,
            {
                "model": chosen.uri,
                "written": f"{', '.join(map(str, made.files))} ({in_bytes(made.size)})",
                "checked": f"read by {portable.FORMATS[format].runtime}, it agrees with "
                f"Keras on the label of all {made.images:,} test images; probabilities differ by "
                f"up to {made.apart.probability:.2g}",
                "takes": f"uint8 images, shape ({shape}), 0 to 255; returns float32 probabilities",
            },
        )
        if made.rounding is not None:
            console.print(
                "The run's model computes in bfloat16, the file in float32, as Keras did for this "
                f"check: that changes probabilities by up to {made.rounding.probability:.2g}, and "
                f"the label of {counted(made.rounding.labels, 'test image')} of {made.images:,}.",
                soft_wrap=True,
            )


def _file_name(store: tracking.Store, chosen: tracking.ChosenModel) -> str:
    """Return a file's name for a model, without its ending: after its run, or its own place."""
    name = Path(chosen.uri.removeprefix("models:/")).stem
    if run := tracking.maker(store, chosen):
        name = run.name
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "model"
