"""The findings of an audit of a data set, as tables and in words.

An image is named by its split, "train" or "test", and its index there, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fmnist_lab.texts import counted

if TYPE_CHECKING:
    from fmnist_lab.data import Dataset
    from fmnist_lab.evaluation.label_errors import LabelErrors
    from fmnist_lab.evaluation.neighbours import Pairs

SPLITS = ("train", "test")
WORDS = {"train": "training", "test": "test"}
# Distances that images are counted by, as shares of the threshold: 1.0, 1.5, 2.0 and 2.5 of 1.5.
STEPS = (2 / 3, 1, 4 / 3, 5 / 3)


@dataclass(frozen=True, eq=False)
class Audit:
    """All that was found out about a data set.

    Attributes:
        dataset: The data set.
        close: All pairs of its images, training images first, whose distance is at most the largest
            of `STEPS` times `closer_than`.
        altered: Pairs that look like altered copies.
        closer_than: The threshold of near duplicates, L2 distance of pixels / 255.
        correlation: The threshold of altered copies.
        labels: The doubts about the labels of each split; empty if labels were not looked at.
        doubt: A label is suspect if its probability is below this.
    """

    dataset: Dataset
    close: Pairs
    altered: Pairs
    closer_than: float
    correlation: float
    labels: dict[str, LabelErrors]
    doubt: float

    @property
    def images(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The training and the test images."""
        return self.dataset.train_images, self.dataset.test_images

    def given(self, split: str) -> NDArray[np.uint8]:
        """Return the labels of a split, (n,)."""
        return self.dataset.train_labels if split == "train" else self.dataset.test_labels

    @cached_property
    def duplicates(self) -> pd.DataFrame:
        """The pairs of near duplicates, the closest first, altered copies last.

        `split` and `index` are of the image to leave out, so that no pair is left when all rows
        are: of a training and a test image the test image, of two of a split the later one.
        """
        near = self.close[self.close.distance < self.closer_than]
        further = self.altered[self.altered.distance >= self.closer_than]
        parts = [self._frame(pairs) for pairs in (near, further)]
        parts[0]["kind"] = np.where(parts[0]["distance"] == 0, "identical", "close")
        parts[1]["kind"] = "altered"
        parts[0] = parts[0].sort_values(["distance", "split", "index"], kind="stable")
        parts[1] = parts[1].sort_values(
            ["correlation", "split", "index"], ascending=[False, True, True], kind="stable"
        )
        return pd.concat(parts, ignore_index=True)

    def _frame(self, pairs: Pairs) -> pd.DataFrame:
        split, index, label = self._named(pairs.second)
        other_split, other_index, other_label = self._named(pairs.first)
        return pd.DataFrame(
            {
                "split": split,
                "index": index,
                "other_split": other_split,
                "other_index": other_index,
                "kind": "",
                "distance": pairs.distance.round(4),
                "correlation": pairs.correlation.round(5),
                "shift_down": pairs.shift[:, 0],
                "shift_right": pairs.shift[:, 1],
                "contrast": pairs.gain.round(3),
                "label": label,
                "other_label": other_label,
            }
        )

    def _named(self, places: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return split, index and label of images, given by their places among all."""
        train = len(self.dataset.train_labels)
        tested = places >= train
        labels = np.concatenate([self.dataset.train_labels, self.dataset.test_labels])
        return np.where(tested, *reversed(SPLITS)), places - train * tested, labels[places]

    @cached_property
    def leaked(self) -> pd.DataFrame:
        """The training images that have a near duplicate among the test images, and those.

        `other_index` is of the image of the other split that each is most like.
        """
        across = self.duplicates.query("split == 'test' and other_split == 'train'")
        columns = {"other_split": "split", "other_index": "index", "index": "other_index"}
        turned = across[["other_split", "other_index", "index"]].rename(columns=columns)
        both = pd.concat([turned, across[["split", "index", "other_index"]]])
        kept = both.drop_duplicates(["split", "index"])
        return kept.sort_values(["split", "index"], ascending=[False, True], ignore_index=True)

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """The labels whose probability is below `doubt`, the least probable first."""
        parts = []
        for split, found in self.labels.items():
            index = np.flatnonzero(found.given < self.doubt)
            part = pd.DataFrame({"split": split, "index": index})
            part["label"] = self.given(split)[index]
            part["probability"] = found.given[index]
            part["likely_label"] = found.likely[index]
            parts.append(part)
        if not parts:
            return pd.DataFrame(columns=["split", "index", "label", "probability", "likely_label"])
        return pd.concat(parts).sort_values("probability", kind="stable", ignore_index=True)

    @cached_property
    def counts(self) -> pd.DataFrame:
        """How many images have a neighbour closer than each of `STEPS` times the threshold.

        One row per pair of splits: `images` of the one, `of` the number of all its images,
        `beside` the split with the neighbours, and one column per distance.
        """
        train = len(self.dataset.train_labels)
        rows = []
        for split, beside in (("test", "train"), ("test", "test"), ("train", "train")):
            second = (self.close.second >= train) == (split == "test")
            first = (self.close.first >= train) == (beside == "test")
            pairs = self.close[first & second]
            row: dict[str, Any] = {
                "images": split,
                "of": len(self.given(split)),
                "beside": beside,
            }
            for step in STEPS:
                near = pairs[pairs.distance < step * self.closer_than]
                ends = [near.second] if split != beside else [near.first, near.second]
                row[f"{step * self.closer_than:g}"] = len(np.unique(np.concatenate(ends)))
            rows.append(row)
        return pd.DataFrame(rows)


def sentences(audit: Audit) -> list[str]:
    """Return the findings in words."""
    dataset, pairs = audit.dataset, audit.duplicates
    sizes = " and ".join(f"{len(audit.given(split)):,} {WORDS[split]} images" for split in SPLITS)
    said = [f"{dataset.name}: {sizes}, {len(dataset.class_names)} classes ({dataset.source})."]
    across = pairs.query("split == 'test' and other_split == 'train'")
    near, altered = (across[(across["kind"] == "altered") == far] for far in (False, True))
    leaked = near["index"].nunique()
    more = len(set(altered["index"]) - set(near["index"]))
    total = len(dataset.test_labels)
    said.append(
        f"Leaked images: {leaked:,} of {total:,} test images ({leaked / total:.2%}) are closer "
        f"than {audit.closer_than:g} (L2 distance of pixels / 255) to a training image, and "
        f"{more:,} more look like a training image that was shifted by a pixel or made brighter "
        f"(correlation {audit.correlation:g} or more). {_labels_differ(across)}"
    )
    for split in SPLITS:
        within = pairs[(pairs["split"] == split) & (pairs["other_split"] == split)]
        found = f"{counted(len(within), 'pair')} of near duplicates"
        if len(within):
            fewer = counted(within["index"].nunique(), "image")
            found += f"; leaving out {fewer} leaves none. {_labels_differ(within)}"
        else:
            found += "."
        said.append(f"Within the {WORDS[split]} images: {found}")
    identical = int((pairs["kind"] == "identical").sum())
    said.append(
        "No two images have the same pixels."
        if not identical
        else f"Pairs of images with exactly the same pixels: {identical:,}."
    )
    said += [_doubts(audit, split, doubts) for split, doubts in audit.labels.items()]
    return said


def _labels_differ(pairs: pd.DataFrame) -> str:
    if pairs.empty:
        return ""
    differ = int((pairs["label"] != pairs["other_label"]).sum())
    return (
        "Both images of each pair have the same label."
        if not differ
        else f"In {counted(differ, 'pair')} of {len(pairs):,} the labels differ."
    )


def _doubts(audit: Audit, split: str, found: LabelErrors) -> str:
    labels = audit.given(split)
    suspects = int((audit.suspects["split"] == split).sum())
    wrong = int((found.likely != labels).sum())
    pair = _most_confused(found.joint)
    names = audit.dataset.class_names
    most = (
        f", most of all {names[pair[0]]} that looks like {names[pair[1]]} "
        f"({found.joint[pair]:,.0f})"
        if pair
        else ""
    )
    return (
        f"Labels of the {WORDS[split]} images: {suspects:,} of {len(labels):,} "
        f"({suspects / len(labels):.2%}) are suspect, which means that models that have not seen "
        f"the image give its label a probability below {audit.doubt:g}. Their most probable "
        f"class is another one for {wrong:,} images. Confident learning expects "
        f"{found.expected:,.0f} label errors{most}. "
        "That counts images of classes that look alike, too, so it is rather too many: judge the "
        "suspect labels by their pictures."
    )


def _most_confused(joint: NDArray[np.float64]) -> tuple[int, int] | None:
    beside = joint - np.diag(joint.diagonal())
    if not beside.max(initial=0) > 0:
        return None
    row, column = np.unravel_index(beside.argmax(), joint.shape)
    return int(row), int(column)
