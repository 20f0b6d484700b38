"""What a run may be told: where `conf/` is, which values are allowed, and a run's identity.

The YAML files in `conf/` hold the defaults; the classes here hold the types and bounds. Hydra
composes the first, `validate` checks the result against the second, and everything after that
works with a frozen, typed `Config`.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from fmnist_lab.errors import UserError

Activation = Literal[
    "relu",
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]


def conf_dir() -> Path:
    """Folder of the Hydra configs: inside the package in a wheel, beside it in a checkout.

    Returns:
        An absolute path, because Hydra resolves a relative one differently under `python -m`,
        from a console script and in a worker process.

    Raises:
        UserError: Neither folder exists, so the installation is damaged.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(
        f"the configs are missing: expected {package / 'conf'} or {package.parent / 'conf'}; "
        "reinstall fmnist_lab"
    )


# A field's description is the second half of the sentence "key: received X, expected …".
Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
Share = Annotated[float, Field(ge=0, lt=1, description="a number from 0 up to, not including, 1")]
Text = Annotated[str, Field(min_length=1, description="a text")]
OptionalText = Annotated[str | None, Field(min_length=1, description="a text, or null")]
OptionalCount = Annotated[
    int | None, Field(ge=1, description="a whole number, 1 or more, or null for all")
]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Flag = Annotated[bool, Field(description="true or false")]
Positive = Annotated[float, Field(gt=0, description="a finite number above 0")]
OptionalPositive = Annotated[
    float | None, Field(gt=0, description="a finite number above 0, or null")
]
OptionalFlag = Annotated[bool | None, Field(description="true, false or null")]
OptionalShare = Annotated[
    float | None, Field(ge=0, lt=1, description="a number from 0 up to, not including, 1, or null")
]
Target = Annotated[
    str,
    Field(
        alias="_target_",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="the dotted name of a Python function or class",
    ),
]


class Section(BaseModel):
    """A node of the config: no unknown key, no silent conversion, no nan, no change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )


S = TypeVar("S", bound=Section)

# How the URI of a tracking server begins, as against a database's.
SERVERS = ("http://", "https://", "databricks")


class Data(Section):
    """Which images, and how many of them."""

    dir: OptionalText
    cache_dir: OptionalText
    download: Flag
    train_limit: OptionalCount = Field(examples=[1000])
    test_limit: OptionalCount = Field(examples=[1000])
    validation_fraction: Share = Field(examples=[0.1])


class IdxData(Data):
    """Images of the user's own: a folder with four IDX files."""

    dir: Annotated[str, Field(min_length=1, description="the folder that holds the four files")]
    name: Annotated[
        str,
        Field(
            pattern=r"^\w[\w.-]*$",
            description="a name of letters, digits, dots, dashes and underscores",
            examples=["mnist"],
        ),
    ]
    class_names: Annotated[
        Annotated[int, Field(ge=2, le=256)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=256)],
        Field(
            description="a list of texts in the order of the labels, or the number of classes",
            examples=["[cat,dog]", 10],
        ),
    ]
    train_images: Text
    train_labels: Text
    test_images: Text
    test_labels: Text
    sha256: Annotated[
        list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] | None,
        Field(
            min_length=4,
            max_length=4,
            description="a list of four texts of 64 hexadecimal digits, or null for no check",
        ),
    ]

    def classes(self) -> tuple[str, ...]:
        """Return a name for each class; where they are only counted, the labels themselves."""
        if isinstance(self.class_names, int):
            return tuple(map(str, range(self.class_names)))
        return tuple(self.class_names)


class Buildable(Section):
    """A node that names a function in `_target_` and holds its arguments."""

    target: Target
    hint: ClassVar[str] = ""  # what may be amiss when the function refuses its arguments

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that were given; null means the function's own default."""
        given = self.model_dump(exclude={"target"})
        return {name: value for name, value in given.items() if value is not None}

    def build(self, **context: Any) -> Any:
        """Call the function with its arguments and those that only the program knows.

        Raises:
            UserError: There is no such function, or it does not take these arguments.
        """
        try:
            function = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"_target_: received '{self.target}', which cannot be imported ({error}); "
                "expected the dotted name of a function or class that Python can find here"
            ) from None
        given = {**self.arguments(), **context}
        try:
            inspect.signature(function).bind(**given)
            return function(**given)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.target} refuses its arguments {given}: {' '.join(str(error).split())}"
                f"{self.hint}"
            ) from error


class LinearModel(Buildable):
    """Multinomial logistic regression."""


class MlpModel(Buildable):
    """A multi-layer perceptron."""

    hidden_units: Annotated[
        Count | Annotated[list[Count], Field(min_length=1)],
        Field(
            description="a whole number, 1 or more, or a list of them, one a layer",
            examples=[128, "[256,128,100]"],
        ),
    ]
    activation: Annotated[
        Activation, Field(description="one of " + ", ".join(get_args(Activation)))
    ]
    batch_norm: Flag
    dropout: Share = Field(examples=[0.2])


class CnnModel(Buildable):
    """A small convolutional network."""

    filters: Annotated[
        list[Count],
        Field(
            min_length=1,
            description="a list of whole numbers, 1 or more, one a convolution",
            examples=["[32,64]"],
        ),
    ]
    dense_units: Annotated[
        int, Field(ge=0, description="a whole number; 0 for no hidden layer", examples=[64])
    ]
    batch_norm: Flag
    dropout: Share = Field(examples=[0.2])


class ResnetModel(Buildable):
    """A residual network for a processor."""

    filters: Annotated[
        list[Count],
        Field(
            min_length=2,
            description="a list of whole numbers, 1 or more: the first convolution's, each stage's",
            examples=["[16,32,64,128]"],
        ),
    ]
    blocks: Count = Field(examples=[1])
    dropout: Share = Field(examples=[0.2])
    flip_average: Flag


class WideResnetModel(Buildable):
    """A wide residual network."""

    depth: Annotated[
        int, Field(ge=10, description="a whole number, 10, 16, 22 or another 6n + 4", examples=[28])
    ]
    width: Count = Field(examples=[10])
    dropout: Share = Field(examples=[0.3])
    flip_average: Flag


class Own(Buildable):
    """Any function from outside; what it takes is checked against its signature when called."""

    model_config = ConfigDict(extra="allow")


class OwnModel(Own):
    """A function of the user's that builds a model."""

    hint: ClassVar[str] = "; every option but model=own brings arguments of its own along"


class ConstantSchedule(Buildable):
    """One learning rate throughout."""


class CosineSchedule(Buildable):
    """Up in a line, down along a cosine."""

    warmup: Share = Field(examples=[0.1])
    start: Fraction = Field(examples=[0.04])
    final: Fraction = Field(examples=[0.0])


class WarmupSchedule(Buildable):
    """Up in a line, then constant."""

    warmup: Share = Field(examples=[0.05])


class Augmentation(Section):
    """Random changes to the training images."""

    flip: Flag
    shift: Annotated[
        int, Field(ge=0, le=27, description="a whole number of pixels, 0 to 27", examples=[2])
    ]
    erase: Fraction = Field(examples=[0.5])


class Optimizer(Buildable):
    """Arguments that every Keras optimizer takes (keras.optimizers.Optimizer)."""

    target: Target = Field(alias="_target_", examples=["keras.optimizers.Lion"])
    learning_rate: Positive = Field(examples=[0.001])
    weight_decay: Annotated[
        float | None, Field(ge=0, description="a finite number, 0 or more, or null")
    ] = None
    clipnorm: OptionalPositive = None
    global_clipnorm: OptionalPositive = None
    clipvalue: OptionalPositive = None
    use_ema: OptionalFlag = None
    ema_momentum: OptionalShare = None


class AdamOptimizer(Optimizer):
    """keras.optimizers.Adam and AdamW."""

    beta_1: OptionalShare = None
    beta_2: OptionalShare = None
    epsilon: OptionalPositive = None
    amsgrad: OptionalFlag = None


class SgdOptimizer(Optimizer):
    """keras.optimizers.SGD."""

    momentum: OptionalShare = None
    nesterov: OptionalFlag = None


class OwnOptimizer(Optimizer):
    """Any other Keras optimizer; the arguments of its own are checked by it."""

    model_config = ConfigDict(extra="allow")


Engine = Literal["auto", "native", "xla", "graph"]


class Trainer(Section):
    """How the model is trained."""

    epochs: Count = Field(examples=[5])
    batch_size: Count = Field(examples=[32])
    engine: Annotated[Engine, Field(description="one of auto, native, xla, graph")]
    threads: OptionalCount = Field(examples=[1])
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="one of float32, bfloat16")
    ]
    label_smoothing: Share = Field(examples=[0.1])
    evaluate_every: Count = Field(examples=[1])


class Tracking(Section):
    """Where the run is kept."""

    kind: Annotated[
        Literal["local", "server", "none"], Field(description="one of local, server, none")
    ]
    uri: OptionalText
    experiment: OptionalText


class Checkpoint(Section):
    """When the training's state is saved."""

    every: Annotated[
        Annotated[int, Field(ge=1)]
        | Annotated[str, Field(pattern=r"^(\d+(\.\d*)?|\.\d+)s$")]
        | None,
        Field(
            description="a number of epochs, 1 or more, seconds such as 30s, or null for never",
            examples=["30s"],
        ),
    ]


class Job(Section):
    """What is done."""

    name: Annotated[Literal["train", "evaluate"], Field(description="one of train, evaluate")]


# Which class describes a node of an open group, by its `_target_`; any other target is the user's
# own, and what it takes is checked against its signature when it is built.
MODELS: dict[str, type[Buildable]] = {
    "fmnist_lab.models.linear": LinearModel,
    "fmnist_lab.models.mlp": MlpModel,
    "fmnist_lab.models.cnn": CnnModel,
    "fmnist_lab.models.resnet": ResnetModel,
    "fmnist_lab.models.wide_resnet": WideResnetModel,
}
CONSTANT = "fmnist_lab.schedules.constant"
SCHEDULES: dict[str, type[Buildable]] = {
    CONSTANT: ConstantSchedule,
    "fmnist_lab.schedules.cosine": CosineSchedule,
    "fmnist_lab.schedules.warmup": WarmupSchedule,
}
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "keras.optimizers.Adam": AdamOptimizer,
    "keras.optimizers.AdamW": AdamOptimizer,
    "keras.optimizers.SGD": SgdOptimizer,
}


class Config(Section):
    """A whole run, checked."""

    data: SerializeAsAny[Data]
    model: SerializeAsAny[Buildable]
    optimizer: SerializeAsAny[Optimizer]
    schedule: SerializeAsAny[Buildable]
    augmentation: Augmentation
    callbacks: dict[str, Own]
    trainer: Trainer
    tracking: Tracking
    checkpoint: Checkpoint
    job: Job
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295", examples=[0])
    ]
    name: OptionalText
    resume: Flag
    model_uri: OptionalText = Field(examples=["runs:/RUN_ID/model"])

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain nested values, the way the YAML files spell it."""
        return self.model_dump(by_alias=True)

    def identity(self) -> str:
        """Return a hash of all that decides the outcome: 16 hexadecimal digits.

        Where things are kept, what the run is called and which folder the (verified) data came
        from do not decide the outcome, so they do not count. A folder whose content nothing
        verifies does.
        """
        return _digest(self._deciding())

    def prefix_identity(self) -> str | None:
        """Return a hash of all that decides the outcome but for the number of epochs.

        Of two runs that share it, the shorter one is a prefix of the longer, bit for bit. None
        where that is not so: a schedule may stretch over the whole run, a callback may know how
        long it is, and a last epoch is evaluated even where a longer run would not.
        """
        if self.trainer.epochs % self.trainer.evaluate_every:
            return None
        if self.schedule.target != CONSTANT or self.callbacks or self.job.name != "train":
            return None
        deciding = self._deciding()
        del deciding["trainer"]["epochs"]
        return _digest(deciding)

    def _deciding(self) -> dict[str, Any]:
        deciding = self.to_dict()
        for key in ("tracking", "name", "resume", "checkpoint"):
            del deciding[key]
        unverified = isinstance(self.data, IdxData) and self.data.sha256 is None
        for key in ("cache_dir", "download", *(() if unverified else ("dir",))):
            del deciding["data"][key]
        return deciding


def _digest(values: Mapping[str, Any]) -> str:
    """Return a hash of nested values: 16 hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def schema(values: Mapping[str, Any]) -> dict[str, type[Section]]:
    """Return the class that describes each group of a composed config."""

    def target(group: str) -> str:
        node = values.get(group)
        return str(node.get("_target_")) if isinstance(node, Mapping) else ""

    return {
        "data": IdxData if "class_names" in (values.get("data") or {}) else Data,
        "model": MODELS.get(target("model"), OwnModel),
        "optimizer": OPTIMIZERS.get(target("optimizer"), OwnOptimizer),
        "schedule": SCHEDULES.get(target("schedule"), Own),
        "augmentation": Augmentation,
        "trainer": Trainer,
        "tracking": Tracking,
        "checkpoint": Checkpoint,
        "job": Job,
    }


def validate(values: Mapping[str, Any]) -> Config:
    """Check composed values against the schema.

    Args:
        values: Nested plain values, as Hydra composed them (without the `hydra` node).

    Returns:
        The typed, frozen config.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type or lies outside its
            bounds, or two values contradict each other. The message names the first such key.
    """
    groups = {
        name: check_section(section, values.get(name), f"{name}.")
        for name, section in schema(values).items()
    }
    callbacks = {
        name: check_section(Own, node, f"callbacks.{name}.")
        for name, node in (values.get("callbacks") or {}).items()
    }
    config = check_section(Config, {**values, **groups, "callbacks": callbacks}, "")
    _check_choices(config)
    _check_server(config.tracking)
    if config.job.name == "evaluate" and config.model_uri is None:
        raise UserError(
            "model_uri: received null, expected the model that job=evaluate is to reload; for "
            "example model_uri=runs:/RUN_ID/model, models:/NAME/1 or a folder"
        )
    if config.resume and config.tracking.kind == "none":
        raise UserError(
            "resume: received true, but with tracking=none nothing is kept that could be resumed"
        )
    if config.job.name == "train" and config.model_uri is not None:
        raise UserError(
            f"model_uri: received {config.model_uri}, but job=train builds a new model; add "
            "job=evaluate to evaluate an existing one"
        )
    return config


def _check_choices(config: Config) -> None:
    """Refuse to choose by validation figures where there are none, lest the test set be used."""
    if config.data.validation_fraction > 0:
        return
    for name, callback in config.callbacks.items():
        monitored = callback.arguments().get("monitor", "")
        if str(monitored).startswith("val_"):
            raise UserError(
                f"callbacks.{name}: received monitor={monitored}, but no images are held out to "
                "measure it on, and nothing is chosen on the test set; add for example "
                "data.validation_fraction=0.1"
            )


def _check_server(tracking: Tracking) -> None:
    """Refuse to look for a tracking server without an address, or at that of something else."""
    if tracking.kind != "server":
        return
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError(
            "tracking.uri: received null with tracking=server and no $MLFLOW_TRACKING_URI, "
            "expected the server's address; for example tracking.uri=http://HOST:5000"
        )
    if not uri.startswith(SERVERS):
        raise UserError(
            f"tracking.uri: received '{uri}' with tracking=server, expected a server's address, "
            "for example tracking.uri=http://HOST:5000; a database is for tracking=local"
        )


def check_section(section: type[S], node: Any, prefix: str) -> S:
    """Check one flat section; the first thing wrong with it becomes our one sentence."""
    if not isinstance(node, Mapping):
        group = prefix.rstrip(".")
        received = f"{group}: received {_shown(node)}"
        if not (names := options(group)):
            raise UserError(
                f"{received}, expected a _target_ and its arguments; for example "
                f"+{group}._target_=keras.callbacks.EarlyStopping"
            )
        raise UserError(
            f"{received}, expected a group of options; choose one of {', '.join(names)}, for "
            f"example {group}={names[0]}"
        )
    try:
        return section.model_validate(node)
    except ValidationError as error:
        finding = error.errors()[0]
    name = str(finding["loc"][0])
    if finding["type"] == "extra_forbidden":
        raise UserError(unknown_key(prefix + name, keys(section)))
    if finding["type"] == "missing":
        raise UserError(missing(prefix + name))
    field = next(f for key, f in section.model_fields.items() if name in (key, f.alias))
    example = f"; for example {prefix}{name}={field.examples[0]}" if field.examples else ""
    raise UserError(
        f"{prefix}{name}: received {_shown(node[name])}, expected {field.description}{example}"
    )


def keys(section: type[Section]) -> list[str]:
    """Return the keys of a section as the YAML files spell them."""
    return [field.alias or name for name, field in section.model_fields.items()]


def options(group: str) -> list[str]:
    """Return the options of a config group: the names of its YAML files, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def missing(key: str) -> str:
    """Return the sentence about a key that needs a value and has none."""
    return f"{key}: missing, expected a value; add {key}=VALUE"


def unknown_key(key: str, known: list[str]) -> str:
    """Return the sentence about a key that does not exist, with the nearest that does."""
    parent, _, name = key.rpartition(".")
    if not known:
        return f"{key}: unknown key, expected none under {parent}"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {'.'.join(filter(None, [parent, near[0]]))}?" if near else ""
    return f"{key}: unknown key, expected one of {', '.join(known)}{hint}"


def _shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"'{value}'" if isinstance(value, str) else str(value)
