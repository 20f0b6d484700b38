"""Find, fetch, verify, parse and split Fashion-MNIST, or any data set in four IDX files.

`sources` finds the files. A file from any source counts only if its content has the SHA-256 that
its description (`FASHION_MNIST`) gives.

Fashion-MNIST: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, arXiv:1708.07747. IDX: LeCun, Cortes, Burges, "The MNIST
database of handwritten digits".
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmnist_lab.data.idx import IdxDataset, IdxFile, fault, parse, sha256
from fmnist_lab.data.noise import Noise
from fmnist_lab.data.sources import find, read_dir
from fmnist_lab.errors import UserError

# They keep the random numbers of the split, and those of a sample of the training images, apart
# from other uses of the same seed.
SPLIT_STREAM, SAMPLE_STREAM = 0x5A11D, 0x5A3B1E

FASHION_MNIST = IdxDataset(
    name="fashion-mnist",
    train_images=IdxFile(
        "train-images-idx3-ubyte",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    keras_folder="fashion-mnist",
    debian_package="dataset-fashion-mnist",
    system_folder="/usr/share/datasets/fashion-mnist",
)


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no single truth value, and are long
class Dataset:
    """The result of `load`: uint8 arrays, read-only, so that `digest` stays true.

    To change an array, copy it; to compare data sets, compare their digests.

    Attributes:
        train_images: (n, height, width), or (n, height, width, 3) in colour.
        train_labels: (n,), indices into `class_names`; those that are trained on, with `Noise` in
            them if it was asked for.
        validation_images: The same of the images that are held out, 0 if no split was asked for.
        validation_labels: Their labels, with `Noise` in them if it was asked for.
        test_images: Those of the test set.
        test_labels: Their labels.
        class_names: One name per class.
        name: Name of the data set.
        digest: SHA-256 (hex) of the arrays after limits and split, in the order below; each enters
            as its shape, "(n, ...)" and a line feed, and its bytes in C order. Equal data have
            equal digests, whatever the source. Clean labels enter only if they are there.
        source: The place of the files, in plain words.
        clean_train_labels: The labels of the training images as they were, if labels were made
            wrong; else None.
        clean_validation_labels: The same for the validation images.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    digest: str
    source: str
    clean_train_labels: np.ndarray | None = None
    clean_validation_labels: np.ndarray | None = None

    @property
    def wrong_labels(self) -> int:
        """The number of training labels that were made wrong."""
        if self.clean_train_labels is None:
            return 0
        return int((self.clean_train_labels != self.train_labels).sum())

    def __repr__(self) -> str:
        """Say how many images there are, and how to use them."""
        height, width, *channels = self.train_images.shape[1:]
        parts = {
            "training": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }
        counts = [f"{len(images):,} {part}" for part, images in parts.items() if len(images)]
        wrong = f", {self.wrong_labels:,} training labels wrong" if self.wrong_labels else ""
        return (
            f"<{self.name}: {', '.join(counts)} images of {height} x {width} pixels"
            f"{' in colour' if channels else ''}, {len(self.class_names)} classes{wrong}; uint8, "
            "0 to 255."
            " The arrays are read-only: x.copy() gives one to change, x / 255 one of floats. The"
            " models take them as they are, and rescale them themselves.>"
        )


def load(
    dir: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    split_seed: int | None = None,
    exclude: Sequence[int] = (),
    exclude_test: Sequence[int] = (),
    noise: Noise | None = None,
    dataset: IdxDataset = FASHION_MNIST,
    download: bool = True,
) -> Dataset:
    """Load a data set from the first source that has it, verified.

    Args:
        dir: Folder with the four files, packed as .gz or not; no other source is then tried.
        cache_dir: Our cache; default is FMNIST_LAB_CACHE or the user's cache folder.
        train_limit: Keep so many training images, before the split; None keeps all.
        test_limit: Keep the first so many test images; None keeps all.
        validation_fraction: In [0, 1). `round(validation_fraction * n)` of the n training images,
            stratified by class, become the validation set; both parts keep their order.
        seed: Chooses which images go into the validation set.
        split_seed: Chooses that in the place of `seed`, and which images `train_limit` keeps, a
            sample without replacement, in their order; a larger limit keeps those of a smaller
            one. None: `train_limit` keeps the first.
        exclude: Indices of training images to leave out, before all else.
        exclude_test: The same for test images.
        noise: How the training labels are made wrong, after the split; None: they stay.
        dataset: The description of the data set.
        download: Whether sources on the network may be used.

    Returns:
        The images (n, height, width[, 3]) and labels (n,) as read-only uint8 arrays.

    Raises:
        UserError: No source has the files, the files in `dir` are missing or wrong, or a limit,
            the fraction, a seed or an index is out of range, or the noise is none that there is.
    """
    if dir is not None:
        contents, source = read_dir(dir, dataset)
    else:
        contents, source = find(dataset, cache_dir, download)
    train_images, train_labels, test_images, test_labels = _parse(dataset, contents, source)
    if dir is not None:  # only now, because a fault inside a file says more than a digest
        for file, content in contents.items():
            if file.sha256 is not None and (received := sha256(content)) != file.sha256:
                received = f"content that is not {dataset.name}'s (SHA-256 {received})"
                raise fault(f"{file.name} ({source})", received, f"SHA-256 {file.sha256}")

    train = _chosen("train", train_limit, exclude, len(train_labels), split_seed)
    test = _chosen("test", test_limit, exclude_test, len(test_labels))
    total, classes = len(train_labels), len(dataset.class_names)
    train_images, train_labels = train_images[train], train_labels[train]
    split = seed if split_seed is None else split_seed
    kept, cut = _split(train_labels, validation_fraction, split)
    labels, clean = [train_labels[kept], train_labels[cut]], list[np.ndarray | None]([None, None])
    if noise is not None and (noise.share or noise.random):
        index = np.arange(total)[train]
        for at, part in enumerate([kept, cut] if noise.validation else [kept]):
            if len(labels[at]):
                clean[at] = labels[at]
                labels[at] = noise.applied(labels[at], index[part], total, classes)
    arrays = (
        *(train_images[kept], labels[0]),
        *(train_images[cut], labels[1]),
        *(test_images[test], test_labels[test]),
    )
    entering = [*arrays, *(each for each in clean if each is not None)]
    for array in entering:
        array.setflags(write=False)
    named = dataset.class_names, dataset.name, _digest(entering), source
    return Dataset(*arrays, *named, *clean)


def names_of(classes: int) -> tuple[str, ...]:
    """Return names for the classes of a model that brings none: Fashion-MNIST's ten, or numbers.

    >>> names_of(3)
    ('0', '1', '2')
    """
    known = FASHION_MNIST.class_names
    return known if len(known) == classes else tuple(map(str, range(classes)))


def of_arrays(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Return arrays as a data set, whose images may be of any type.

    Args:
        train_images: Shape (n, height, width), perhaps with channels behind.
        train_labels: Whole numbers from 0, shape (n,) or (n, 1).
        test_images: Like the training images.
        test_labels: Like their labels.
        class_names: One name per class; None: their numbers.
        name: The data set's name.

    Raises:
        UserError: The arrays do not fit together.

    >>> images, labels = np.zeros((3, 8, 9)), np.array([0, 1, 1])
    >>> of_arrays(images, labels, images[:2], labels[:2]).class_names
    ('0', '1')
    """
    images = np.asarray(train_images), np.asarray(test_images)
    given = [np.asarray(each) for each in (train_labels, test_labels)]
    if any(
        each.ndim == 2 and each.shape[1] > 1 and len(each) == len(some)
        for some, each in zip(images, given, strict=True)
    ):
        raise UserError(
            f"received labels of shapes {given[0].shape} and {given[1].shape}, one column for each "
            "class, expected one whole number for each image; labels.argmax(axis=1) makes them so"
        )
    labels = [each.reshape(-1) for each in given]
    sizes = {each.shape[1:] for each in images}
    if len(sizes) > 1 or any(
        not len(some) or len(some) != len(each) for some, each in zip(images, labels, strict=True)
    ):
        shapes = ", ".join(
            str(each.shape) for pair in zip(images, labels, strict=True) for each in pair
        )
        raise UserError(
            f"received training images and labels, test images and labels of shapes {shapes}, "
            "expected images of one size, at least one, with one label for each"
        )
    if any(each.dtype.kind == "f" and not np.isfinite(each).all() for each in images):
        raise UserError("received images with nan or infinite pixels, expected finite ones")
    if any(each.dtype.kind not in "iu" or each.min() < 0 for each in labels):
        raise UserError(
            f"received labels of type {labels[0].dtype} from {min(e.min() for e in labels)}, "
            "expected whole numbers from 0"
        )
    classes = 1 + max(int(each.max()) for each in labels)
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if len(set(names)) < len(names) or len(names) < classes:
        raise UserError(
            f"class_names: received {', '.join(names)}, expected {classes} names or "
            "more, all different, one for each label from 0"
        )
    none = images[0][:0], labels[0][:0]
    arrays = images[0], labels[0], *none, images[1], labels[1]
    return Dataset(*arrays, names, name, _digest(arrays), "memory")


def _digest(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of arrays: of each the shape, and the bytes in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def _parse(
    dataset: IdxDataset, contents: dict[IdxFile, bytes], source: str
) -> tuple[np.ndarray, ...]:
    """Parse the four files and check that they fit together and the description."""
    names = [f"{file.name} ({source})" for file in dataset.files]
    arrays = [parse(contents[dataset.files[at]], names[at], dataset.mend) for at in range(4)]
    for at in (0, 2):
        if arrays[at].ndim == 4 and arrays[at].shape[-1] == 1:
            arrays[at] = arrays[at][..., 0]
    size = dataset.image_shape or arrays[0].shape[1:]
    if len(size) == 2 or size[2:] == (3,):
        expected_images = "images of " + " x ".join(map(str, size))
    else:
        size = ()
        expected_images = "images, n x height x width, or n x height x width x 3 in colour"
    last = len(dataset.class_names) - 1
    for at in (0, 2):
        images, labels = arrays[at : at + 2]
        if not size or images.shape[1:] != size:
            received = "an array of " + " x ".join(map(str, images.shape))
            raise fault(names[at], received, expected_images, dataset.mend)
        if labels.shape != images.shape[:1]:
            received = "labels in an array of " + " x ".join(map(str, labels.shape))
            expected = f"{len(images)}, one for each image in {dataset.files[at].name}"
            raise fault(names[at + 1], received, expected, dataset.mend)
        if labels.max() > last:
            expected = f"0 to {last}, the classes of {dataset.name}"
            file, mend = dataset.files[at + 1], dataset.mend
            if file.sha256 in (None, sha256(contents[file])):
                mend = (
                    f"If the labels are right, there are {labels.max() + 1} classes or more: set "
                    "data.class_names to their number, or name them all."
                )
            raise fault(names[at + 1], f"the label {labels.max()}", expected, mend)
    return tuple(arrays)


def _chosen(
    part: str, limit: int | None, excluded: Sequence[int], total: int, seed: int | None = None
) -> np.ndarray | slice:
    """Return the places of the images that are kept of a part of the data, in their order."""
    excluded = list(excluded)  # an array has no truth value
    beyond = [index for index in excluded if not 0 <= index < total]
    if beyond:
        name = "data.exclude" if part == "train" else f"data.exclude_{part}"
        long = "training" if part == "train" else part
        expected = f"indices from 0 to {total - 1}, of the {total} {long} images"
        mend = "Leave that index out, or take the list that belongs to this data set."
        raise fault(name, f"the index {beyond[0]}", expected, mend)
    available = total - len(set(excluded))
    if not available:
        received, expected = f"all {total} images", "fewer, so that one is left at least"
        raise fault(f"data.exclude for {part}", received, expected, "Shorten the list.")
    if limit is not None and not 1 <= limit <= available:
        mend = "Choose one in that range, or null for all."
        name = f"data.{part}_limit"
        raise fault(name, str(limit), f"1 to {available}, the images there are", mend)
    if seed is not None and seed < 0:
        raise fault("data.split_seed", str(seed), "0 or more", "Choose another seed.")
    if not excluded and (seed is None or limit is None):
        return slice(limit)  # a view: nothing is copied
    places = np.setdiff1d(np.arange(total), np.fromiter(excluded, np.int64, len(excluded)))
    if seed is None or limit is None:
        return places[:limit]
    # One random key per image, so that a larger limit keeps the images of a smaller one.
    bits = np.random.Generator(np.random.PCG64([seed, SAMPLE_STREAM]))
    return np.sort(places[np.argsort(bits.random(total)[places], kind="stable")[:limit]])


def _split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray | slice, np.ndarray | slice]:
    """Indices of the images that stay in the training set, and of those cut for validation."""
    if fraction == 0:
        return slice(None), slice(0)  # views: nothing is copied
    name = "data.validation_fraction"
    if not 0 < fraction < 1:
        raise fault(name, str(fraction), "0 <= fraction < 1", "0.1 is common, 0 is no split.")
    if seed < 0:
        raise fault("seed", str(seed), "0 or more", "Choose another seed.")
    total = round(fraction * len(labels))
    if not 0 < total < len(labels):
        received = f"{fraction}, which is {total} of {len(labels)} training images"
        mend = "Choose another fraction, 0 for no split, or a larger data.train_limit."
        raise fault(name, received, "at least one image in each part", mend)
    # Largest remainders, in integers so that no rounding can lose or add an image.
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(total * counts, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: total - quotas.sum()]] += 1
    # One random key per image, rather than draws per class, so that a larger fraction keeps the
    # images of a smaller one.
    keys = np.random.default_rng([seed, SPLIT_STREAM]).random(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(keys[members], kind="stable")[:quota]]] = True
    return ~chosen, chosen
