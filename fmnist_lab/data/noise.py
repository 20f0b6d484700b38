"""Wrong labels, made on purpose: a share of the labels is replaced by other classes.

Zhang, Bengio, Hardt, Recht, Vinyals, "Understanding deep learning requires rethinking
generalization", 2017, arXiv:1611.03530, trained on such labels and on random ones. A table of
confusions makes some mistakes likelier than others: Patrini et al., "Making Deep Neural Networks
Robust to Label Noise", 2017, arXiv:1609.03683.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmnist_lab.data.idx import fault

NOISE_STREAM = 0x0153  # keeps these random numbers apart from other uses of the same seed

TABLE_MEND = (
    "Write a line for each true class, and in it the probability of each other class for a label "
    "that is replaced, with commas between them."
)


@dataclass(frozen=True)
class Noise:
    """How labels are made wrong.

    Attributes:
        share: Share of the labels to replace by another class, 0 to 1.
        seed: Decides which labels are replaced, and by what.
        table: A row for each true class: the probability of each class for a label of that class
            that is replaced. The diagonal is 0, and a row adds up to 1, or to 0 where labels of
            that class stay as they are. None: each other class is as likely.
        validation: Whether the labels of the validation images are made wrong as well.
        random: Whether each label is drawn from all classes alike, its own among them, whatever
            the image shows; `share` is 0 then.
    """

    share: float = 0.0
    seed: int = 0
    table: Sequence[Sequence[float]] | None = None
    validation: bool = False
    random: bool = False

    def applied(
        self, labels: NDArray[np.uint8], index: NDArray[np.int64], total: int, classes: int
    ) -> NDArray[np.uint8]:
        """Return labels of which some are wrong.

        Which label is how wrong depends on the seed and on the image's index in the whole data set
        alone. So a larger share replaces the labels of a smaller one, too, by the same classes, as
        long as the images are the same ones.

        Args:
            labels: uint8 (n,), the true classes.
            index: int64 (n,), the index of each image in the whole set.
            total: Number of images of the whole set.
            classes: Number of classes.

        Returns:
            uint8 (n,): `round(share * n)` of the labels are replaced by another class, or all
            are drawn at random. The bits are the same on every machine.

        Raises:
            UserError: The share is none, or replaces no label, or more than the table lets it; or
                the table does not fit the classes; or the seed is negative.
        """
        if not 0 <= self.share <= 1:
            raise fault("data.label_noise", str(self.share), "0 to 1", "0.2 replaces a fifth.")
        if self.seed < 0:
            raise fault("data.noise_seed", str(self.seed), "0 or more", "Choose another seed.")
        table = _checked(self.table, classes)
        bits = np.random.Generator(np.random.PCG64([self.seed, NOISE_STREAM]))
        keys, draws = bits.random(total)[index], bits.random(total)[index]
        if self.random:
            return (draws * classes).astype(np.uint8)
        if not self.share:
            return labels
        count = round(self.share * len(labels))
        open_to_it = np.flatnonzero(table.sum(axis=1)[labels])
        if not 0 < count <= len(open_to_it):
            received = f"{self.share}, which is {count} of {len(labels)} labels"
            expected = f"1 to {len(open_to_it)} labels"
            if len(open_to_it) < len(labels):
                expected += ", those of the classes that data.noise_table changes"
            raise fault("data.label_noise", received, expected, "Choose another share.")
        chosen = open_to_it[np.argsort(keys[open_to_it], kind="stable")[:count]]
        noisy = labels.copy()
        # The inverse of each row's distribution function, which never yields a class of
        # probability 0: its step has no height, and the largest draw stays below the last step.
        steps = np.cumsum(table, axis=1)
        for label in np.unique(labels[chosen]):
            mine = chosen[labels[chosen] == label]
            below = np.minimum(draws[mine] * steps[label, -1], np.nextafter(steps[label, -1], 0))
            noisy[mine] = np.searchsorted(steps[label], below, side="right")
        return noisy


def _checked(table: Sequence[Sequence[float]] | None, classes: int) -> NDArray[np.float64]:
    """Return a table of confusions as an array; the symmetric one for None."""
    if table is None:
        return (np.ones((classes, classes)) - np.eye(classes)) / (classes - 1)
    name, expected = "data.noise_table", f"{classes} rows of {classes} numbers"
    widths = {len(row) for row in table}
    if len(table) != classes or widths != {classes}:
        received = f"{len(table)} rows of {' or '.join(map(str, sorted(widths)))} numbers"
        raise fault(name, received, expected, TABLE_MEND)
    rows = np.array(table, np.float64)
    for label, row in enumerate(rows):
        where = f"{name}, row {label + 1}"
        if not ((row >= 0) & (row <= 1)).all():
            worst = row[~((row >= 0) & (row <= 1))][0]
            raise fault(where, f"{worst:g}", "probabilities from 0 to 1", TABLE_MEND)
        if row[label]:
            expected = "0, because a label that is replaced is not its own class"
            raise fault(where, f"{row[label]:g} for class {label} itself", expected, TABLE_MEND)
        if row.any() and abs(row.sum() - 1) > 1e-6:
            expected = "a sum of 1, or of 0 for a class whose labels stay as they are"
            raise fault(where, f"probabilities with a sum of {row.sum():g}", expected, TABLE_MEND)
    return rows
