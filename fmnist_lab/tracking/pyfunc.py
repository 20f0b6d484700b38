"""How MLflow loads and serves a model of ours: a copy of this file is part of each logged model.

Nothing here imports it but MLflow, which finds its name in the model's description. The answers are
those of `runs serve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from fmnist_lab.evaluation.scaling import Scaling
from fmnist_lab.models import saved
from fmnist_lab.serving.answers import Answerer, RefusedRequest


class RefusedInput(MlflowException):
    """A refusal that keeps its one sentence; MLflow's server would repeat the whole input in it."""

    def __init__(self, refusal: RefusedRequest) -> None:
        super().__init__(str(refusal), error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence."""
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        self._message = text.rpartition("Error: ")[2]


class Served:
    """A model as MLflow asks it."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Return one answer per image, see `Answerer.answer`.

        Args:
            model_input: Images in an array or a list, or one column of them.
            params: `top_k` and `show`.

        Raises:
            RefusedInput: The model takes no such input.
        """
        # A table has columns, and {"b64": …} arrives as one, too.
        if hasattr(model_input, "keys") and len(columns := list(model_input.keys())) == 1:
            model_input = list(model_input[columns[0]])
        try:
            return self._answerer.answer(model_input, params)
        except RefusedRequest as refusal:
            raise RefusedInput(refusal) from None


def _load_pyfunc(folder: str) -> Served:
    """Return the model in a folder's `data`, whose description is beside it."""
    place = Path(folder)
    model = saved.load(place / "model.keras")
    names = (Model.load(place.parent).metadata or {}).get("class_names")
    classes = int(model.output_shape[-1])
    return Served(
        Answerer(
            saved.compiled(model, saved.divisor_of(place.parent)),
            saved.image_shape(model),
            names or [str(number) for number in range(classes)],
            Scaling.read(place.parent),
        )
    )
