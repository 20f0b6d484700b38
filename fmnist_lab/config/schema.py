"""The types of a config: which keys it has, and which values are allowed.

The YAML files in `conf/` hold the defaults; the classes here hold the types and bounds. Hydra
composes the first, `validate` checks the result against the second, and everything after that
works with a frozen, typed `Config`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError

from fmnist_lab.config import identity, messages
from fmnist_lab.config.fields import (
    Count,
    Flag,
    Fraction,
    OptionalCount,
    OptionalText,
    Section,
    Share,
    Text,
)
from fmnist_lab.config.functions import Buildable, Optimizer, Own, section_of
from fmnist_lab.errors import UserError

S = TypeVar("S", bound=Section)

# The URI of a tracking server begins with one of these, and a database's with none.
SERVERS = ("http://", "https://", "databricks")


class Data(Section):
    """Which images, and how many of them."""

    dir: OptionalText
    cache_dir: OptionalText
    download: Flag
    train_limit: OptionalCount = Field(examples=[1000])
    test_limit: OptionalCount = Field(examples=[1000])
    validation_fraction: Share


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
            examples=["[cat,dog]"],
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


class Augmentation(Section):
    """Random changes to the training images."""

    flip: Flag
    shift: Annotated[int, Field(ge=0, le=27, description="a whole number of pixels, 0 to 27")]
    erase: Fraction


Engine = Literal["auto", "native", "xla", "graph"]


class Trainer(Section):
    """How the model is trained."""

    epochs: Count
    batch_size: Count
    engine: Engine
    threads: OptionalCount = Field(examples=[1])
    precision: Literal["float32", "bfloat16"]
    label_smoothing: Share
    evaluate_every: Count


class Tracking(Section):
    """Where the run is kept."""

    kind: Literal["local", "server", "none"]
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
        ),
    ]


class Job(Section):
    """What is done."""

    name: Literal["train", "evaluate"]


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
    seed: Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
    name: OptionalText
    resume: Flag
    pause_after: OptionalCount = Field(examples=[3])
    model_uri: OptionalText = Field(examples=["runs:/RUN_ID/model"])

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain nested values, the way the YAML files spell it."""
        return self.model_dump(by_alias=True)

    def identity(self) -> str:
        """Return `identity.identity` of the config."""
        return identity.identity(self.to_dict())

    def native_identity(self) -> str:
        """Return `identity.native_identity` of the config."""
        return identity.native_identity(self.to_dict())

    def prefix_identity(self) -> str | None:
        """Return `identity.prefix_identity` of the config."""
        return identity.prefix_identity(self.to_dict())


def sections(values: Mapping[str, Any]) -> dict[str, type[Section]]:
    """Return the class that describes each group of a composed config."""

    def node(group: str) -> Mapping[str, Any]:
        found = values.get(group)
        return found if isinstance(found, Mapping) else {}

    return {
        "data": IdxData if "class_names" in node("data") else Data,
        **{group: section_of(group, node(group)) for group in ("model", "optimizer", "schedule")},
        "augmentation": Augmentation,
        "trainer": Trainer,
        "tracking": Tracking,
        "checkpoint": Checkpoint,
        "job": Job,
    }


def check_section(section: type[S], node: Any, prefix: str) -> S:
    """Check one flat node of a config.

    Args:
        section: The class that describes it.
        node: Its values.
        prefix: The node's key with a dot after it, or "" for the whole config.

    Raises:
        UserError: Something in it is wrong; the message is about the first such key.
    """
    if not isinstance(node, Mapping):
        raise UserError(messages.no_group(prefix.rstrip("."), node))
    try:
        return section.model_validate(node)
    except ValidationError as error:
        raise UserError(messages.wrong_value(section, node, prefix, error.errors()[0])) from None


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
        for name, section in sections(values).items()
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
    _check_pause(config)
    return config


def _check_pause(config: Config) -> None:
    """Refuse to pause where no state would be kept to go on from, and where there is no epoch."""
    after = config.pause_after
    if after is None:
        return
    if config.job.name != "train":
        raise UserError(
            f"pause_after: received {after}, but job={config.job.name} trains no epoch to pause "
            "after; leave pause_after out"
        )
    if after >= config.trainer.epochs:
        return
    for key, keeps_nothing in (
        ("tracking=none", config.tracking.kind == "none"),
        ("checkpoint.every=null", config.checkpoint.every is None),
    ):
        if keeps_nothing:
            raise UserError(
                f"pause_after: received {after}, but with {key} no state is kept that a paused run "
                f"could go on from; leave out {key} or pause_after"
            )


def _check_choices(config: Config) -> None:
    """Refuse to choose by validation figures without held-out images, to protect the test set."""
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
    """Refuse a tracking server without an address, or with the address of something else."""
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
