"""Bad input, hunted by Hypothesis: files, command lines, images. A hundred each by default, many
more where slow tests are run.

None gives a traceback, none starts a training, none changes a good cache. FMNIST_LAB_LINES says how
many command lines the slow test generates.
"""

import gzip
import io
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_lines import LINES, Door, check_answered, folders_of_configs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from idx_files import tiny, write

from fmnist_lab import data, predict
from fmnist_lab.errors import UserError

LINES_TRIED = int(os.environ.get("FMNIST_LAB_LINES", "1000"))
AMOUNTS = [100, pytest.param(1000, marks=pytest.mark.slow)]


def hunt(examples: int):
    """Settings of a hunt that leaves no folder behind and takes its time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check_told(error: UserError, subject: str) -> None:
    """Check that an error is one line, and says what it is about."""
    text = str(error)
    assert subject in text
    assert "\n" not in text
    assert "Traceback" not in text


# Files

DATASET, FILES = tiny()
NAMES = sorted(FILES)


@st.composite
def damaged(draw) -> bytes:
    """A file's content that is not what it is to be: torn, changed, grown, or another thing."""
    whole = FILES[draw(st.sampled_from(NAMES))]
    how = draw(st.sampled_from(["torn", "changed", "grown", "header", "anything"]))
    if how == "torn":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if how == "grown":
        return whole + draw(st.binary(min_size=1, max_size=20))
    if how == "changed":
        changed = bytearray(whole)
        for at, bits in draw(
            st.lists(
                st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)),
                min_size=1,
                max_size=5,
            )
        ):
            changed[at] ^= bits
        return bytes(changed)
    if how == "header":
        sizes = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
        return bytes([0, 0, 8, len(sizes)]) + b"".join(s.to_bytes(4, "big") for s in sizes)
    return draw(st.binary(max_size=64))


@st.composite
def damaged_files(draw) -> tuple[str, bytes]:
    """A file's name, packed or not, and its damaged content."""
    name, content = draw(st.sampled_from(NAMES)), draw(damaged())
    if not draw(st.booleans()):
        return name, content
    packed = bytearray(gzip.compress(content, mtime=0))
    if draw(st.booleans()):
        packed[draw(st.integers(0, len(packed) - 1))] ^= draw(st.integers(1, 255))
    return f"{name}.gz", bytes(packed[: draw(st.integers(1, len(packed)))])


def below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("examples", AMOUNTS)
def test_no_bad_file_is_taken_or_harms_the_cache(examples, tmp_path):
    cache = tmp_path / "cache"
    write(cache / "tiny", FILES)
    data.load(cache_dir=cache, dataset=DATASET, download=False)
    before = below(cache)
    refused = Counter()

    @hunt(examples)
    @given(damaged_files())
    def check(damage: tuple[str, bytes]) -> None:
        name, content = damage
        plain = name.removesuffix(".gz")
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        try:
            write(folder, {other: FILES[other] for other in NAMES if other != plain})
            (folder / name).write_bytes(content)
            try:
                found = data.load(folder, cache_dir=cache, dataset=DATASET)
            except UserError as error:
                check_told(error, plain)
                refused["files"] += 1
            else:
                # What was changed is nothing but how it was packed.
                assert found.digest == good.digest
            assert below(cache) == before
        finally:
            shutil.rmtree(folder)

    good = data.load(cache_dir=cache, dataset=DATASET, download=False)
    check()
    assert refused["files"] > 0.9 * examples
    assert data.load(cache_dir=cache, dataset=DATASET, download=False).digest == good.digest


# Command lines


@pytest.mark.slow
def test_no_bad_command_line_starts_a_training(hydra_here, capsys):
    """Overrides and Hydra's own flags; half of the lines have to have been bad."""
    door = Door(capsys)
    refused = Counter()
    folders_of_configs()

    @hunt(LINES_TRIED)
    @given(LINES)
    def check(words: list[str]) -> None:
        refused["lines"] += check_answered(door, words)

    check()
    assert refused["lines"] >= LINES_TRIED / 2
    files = {path.name for path in hydra_here.rglob("*") if path.is_file()}
    assert not files & {"mlflow.db", "lock", "journal.jsonl"}


# Images to be predicted


@pytest.fixture(scope="module")
def classifier(backend) -> predict.Classifier:
    from fmnist_lab import models

    model = models.linear((28, 28), 10)
    return predict.Classifier(model, data.FASHION_MNIST.class_names, "untrained")


SHAPES = st.sampled_from(
    [(), (0,), (28,), (28, 28), (1, 28, 28), (3, 28, 28), (0, 28, 28), (28, 28, 1), (2, 28, 27)]
) | st_numpy.array_shapes(min_dims=0, max_dims=4, max_side=5)
TYPES = st.sampled_from(
    [
        *("uint8", "int8", "int64", "uint64", "float16", "float32", "float64"),
        *("bool", "complex64", "U3", "S2", "datetime64[s]", "object"),
    ]
)
ODD = st.sampled_from([0, 1, 255, 256, -1, 0.5, 1e300, float("nan"), float("inf"), 2**63])


@st.composite
def arrays(draw) -> object:
    """An array of any shape and type, or what Python has for one."""
    shape, kind = draw(SHAPES), draw(TYPES)
    array = np.full(shape, draw(st.integers(0, 255)), "float64")
    if array.size and draw(st.booleans()):
        array.flat[draw(st.integers(0, array.size - 1))] = draw(ODD)
    with np.errstate(all="ignore"):
        array = array.astype(kind) if kind != "datetime64[s]" else array.astype("i8").astype(kind)
    return draw(st.sampled_from([array, array.tolist()]))


ANYTHING = arrays() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("examples", AMOUNTS)
def test_what_is_no_image_is_refused_and_what_is_one_is_predicted(examples, classifier):
    @hunt(examples)
    @given(ANYTHING)
    @example(np.full((28, 28), np.inf, np.float16))
    @example(np.full((28, 28), np.nan, np.float16))
    @example(np.full((28, 28), np.inf, np.float64))
    def check(images: object) -> None:
        try:
            probabilities = classifier.predict(images)
        except UserError as error:
            check_told(error, "images: received ")
        else:
            shape = np.asarray(images).shape
            assert probabilities.shape == (*shape[:-2], 10)
            assert np.allclose(probabilities.sum(axis=-1), 1, atol=1e-3)

    check()


def picture() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(stream, "png")
    return stream.getvalue()


PICTURE = picture()


@st.composite
def damaged_pictures(draw) -> bytes:
    content = bytearray(PICTURE)
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255))
    for at, bits in draw(st.lists(places, max_size=4)):
        content[at] ^= bits
    return bytes(content[: draw(st.integers(0, len(content)))])


MAGIC = [b"", PICTURE[:8], b"GIF89a", b"BM", b"\xff\xd8\xff\xe0", b"II*\0", b"RIFF", b"P5 28 28 "]


@pytest.mark.parametrize("examples", AMOUNTS)
def test_no_damaged_picture_gives_a_traceback(examples, tmp_path):
    file = tmp_path / "picture.png"

    @hunt(examples)
    @given(
        damaged_pictures() | st.tuples(st.sampled_from(MAGIC), st.binary(max_size=60)).map(b"".join)
    )
    def check(content: bytes) -> None:
        file.write_bytes(content)
        try:
            pixels = predict.read_image(file).pixels
        except UserError as error:
            check_told(error, f"{file}: ")
        else:
            assert (pixels.ndim, pixels.dtype) == (2, np.uint8)

    check()
