"""Models in formats that other programs run: written by Keras, and read back by their own runtimes.

Every file takes raw uint8 images, as the Keras model does, and returns float32 probabilities.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_lab.errors import UserError
from fmnist_lab.system import process, streams

# uint8 images (n, height, width) or (n, height, width, 3) in; float32 (n, classes) out.
Predict = Callable[[np.ndarray], np.ndarray]

# Images per call of a runtime: a multiple of the batches of 32 in which Keras predicts, since the
# last bits of a model in a lower precision depend on these.
BATCH = 512


@dataclass(frozen=True)
class Format:
    """A format that a model can be exported in.

    Attributes:
        runtime: What loads the file and runs it.
        keras_name: Keras' name for it, as `Model.export` takes it; "" for Keras' own file.
        suffix: How its file's name ends; "" for a folder.
        beside: The ending of a second file of the same stem, or "".
        load: Has the format's own runtime load the file.
        extra: The extra of fmnist_lab that brings what it needs, or "".
        modules: What has to be importable.
        any_precision: Whether it computes in the model's precision; the others do in float32.
    """

    runtime: str
    keras_name: str
    suffix: str
    load: Callable[[Path], Predict]
    beside: str = ""
    extra: str = ""
    modules: tuple[str, ...] = ()
    any_precision: bool = False

    def names(self, output: Path) -> list[Path]:
        """Return the files or folders that a model under this name has, the named one last."""
        return [*([output.with_suffix(self.beside)] if self.beside else []), output]


def check_installed(name: str) -> None:
    """Refuse a format whose libraries are not installed.

    Args:
        name: One of `FORMATS`.

    Raises:
        UserError: One is missing.
    """
    chosen = FORMATS[name]
    missing = [module for module in chosen.modules if find_spec(module) is None]
    if missing:
        raise UserError(
            f"--format: received {name}, which needs {' and '.join(missing)}, not installed here; "
            f"pip install 'fmnist_lab[{chosen.extra}]'"
        )


def write(model: Any, name: str, path: Path) -> None:
    """Write a model in a format.

    Args:
        model: A Keras model; in float32, but for the formats that compute in any precision.
        name: One of `FORMATS`.
        path: The file or folder to be made, whose name has the format's suffix.

    Raises:
        UserError: The format cannot express the model.
    """
    chosen = FORMATS[name]
    if not chosen.keras_name:
        model.save(path)
        return
    # Keras wants a model that was called once, and a path that is a text.
    shape = [1, *model.input_shape[1:]]
    model(np.zeros(shape, "uint8"))
    try:
        with _quiet():
            model.export(str(path), format=chosen.keras_name, verbose=False)
    except Exception as error:
        # A converter raises anything for an operation that it does not know.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"--format: received {name}, in which this model cannot be written: {reason}; choose "
            "another format, for example saved_model"
        ) from error


def in_float32(model: Any) -> Any:
    """Return a model that computes in float32 and has the same weights.

    Args:
        model: A Keras model of any precision; if it is float32 throughout, it is returned.
    """
    import keras

    from fmnist_lab import compat

    if all(layer.compute_dtype == "float32" for layer in compat.all_layers(model)):
        return model
    config = _with_float32(keras.saving.serialize_keras_object(model))
    found = keras.saving.deserialize_keras_object(config)
    found.set_weights(model.get_weights())
    return found


def _with_float32(value: Any) -> Any:
    """Return a Keras config in which no layer computes in a lower precision."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "DTypePolicy":
            return {**value, "config": {**value["config"], "name": "float32"}}
        return {key: _with_float32(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_float32(each) for each in value]
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep converters from writing between our lines, and from reporting to OpenVINO's makers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Without this package, OpenVINO sends nothing about each conversion to its makers.
        with (
            process.hidden("openvino_telemetry", always=True),
            streams.notes_held_back(shown_on_failure=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def load(name: str, path: Path) -> Predict:
    """Have a format's own runtime load a file.

    Args:
        name: One of `FORMATS`.
        path: The file or folder.
    """
    with _quiet():
        call = FORMATS[name].load(path)

    def predict(images: np.ndarray) -> np.ndarray:
        with _quiet():
            starts = range(0, len(images), BATCH)
            return np.concatenate([call(images[start : start + BATCH]) for start in starts])

    return predict


def _load_keras(path: Path) -> Predict:
    from fmnist_lab.models import saved

    model = saved.load(path)
    return lambda images: model.predict(images, verbose=0)


def _load_saved_model(path: Path) -> Predict:
    import tensorflow as tf

    found = tf.saved_model.load(str(path))
    return lambda images: np.asarray(found.serve(images))


def _load_onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _load_litert(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    (image,) = interpreter.get_input_details()
    (probabilities,) = interpreter.get_output_details()

    def call(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(image["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(probabilities["index"])
        return found

    return call


def _load_openvino(path: Path) -> Predict:
    import openvino

    # On some processors its default is bfloat16.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", exact)
    return lambda images: compiled(images)[0]


FORMATS = {
    "keras": Format("Keras", "", ".keras", _load_keras, any_precision=True),
    "saved_model": Format("TensorFlow", "tf_saved_model", "", _load_saved_model),
    "onnx": Format(
        "ONNX Runtime",
        "onnx",
        ".onnx",
        _load_onnx,
        extra="onnx",
        modules=("tf2onnx", "onnxruntime"),
    ),
    "litert": Format(
        "LiteRT", "litert", ".tflite", _load_litert, extra="litert", modules=("ai_edge_litert",)
    ),
    "openvino": Format(
        "OpenVINO",
        "openvino",
        ".xml",
        _load_openvino,
        beside=".bin",
        extra="openvino",
        modules=("openvino",),
    ),
}
