"""Finding, fetching, verifying, parsing and splitting, on tiny data sets and a loopback server."""

import gzip
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from idx_files import describe, idx_bytes, plainly, server, tiny, tiny_arrays, write

from fmnist_lab.data import debian as packages
from fmnist_lab.data import idx, sources
from fmnist_lab.data.dataset import FASHION_MNIST, IdxFile, load
from fmnist_lab.errors import UserError

settings.register_profile("leave no folder behind", database=None)
settings.load_profile("leave no folder behind")

ARRAYS = (
    "train_images",
    "train_labels",
    "validation_images",
    "validation_labels",
    "test_images",
    "test_labels",
)


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch, tmp_path):
    """No test sees the user's cache, Keras folder or proxies, nor waits long."""
    for name in ("KERAS_HOME", "XDG_CACHE_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FMNIST_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 10.0)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "tiny"


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def filled(folder: Path) -> dict[str, bytes]:
    """What a cache folder holds, apart from its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# What comes out


@pytest.mark.parametrize("packed", [False, True])
def test_round_trip(tmp_path, packed):
    dataset, files = tiny()
    loaded = load(write(tmp_path / "mine", files, packed), dataset=dataset)
    for name, array in tiny_arrays().items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == np.uint8
    assert loaded.validation_images.shape == (0, 4, 3)
    assert loaded.validation_labels.shape == (0,)
    assert loaded.class_names == ("class 0", "class 1", "class 2")
    assert (loaded.name, loaded.source) == ("tiny", f"folder {tmp_path / 'mine'}")
    assert not (tmp_path / "cache").exists()  # the user's own folder is neither copied nor changed


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_arrays_are_read_only(tmp_path, fraction):
    dataset, files = tiny()
    loaded = load(write(tmp_path, files), dataset=dataset, validation_fraction=fraction)
    for name in ARRAYS:
        assert not getattr(loaded, name).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loaded.train_images[0, 0, 0] = 1


def test_a_data_set_says_what_it_is_in_a_few_words(tmp_path):
    dataset, files = tiny()
    loaded = load(write(tmp_path, files), dataset=dataset, validation_fraction=0.3)
    said = repr(loaded)
    assert said.startswith(
        "<tiny: 7 training, 3 validation, 5 test images of 4 x 3 pixels, 3 classes"
    )
    assert "x.copy()" in said
    assert len(said) < 300
    # What it says of them.
    mine = loaded.test_images.copy()
    mine[:] = 0
    assert (loaded.test_images / 255).max() <= 1


def test_digest_is_of_the_arrays_alone(tmp_path):
    dataset, files = tiny()
    arrays = tiny_arrays()
    arrays |= {"validation_images": np.empty((0, 4, 3)), "validation_labels": np.empty(0)}
    expected = hashlib.sha256()
    for name in ARRAYS:
        expected.update(f"{arrays[name].shape}\n".encode() + arrays[name].tobytes())
    plain = write(tmp_path / "plain", files)
    packed = write(tmp_path / "packed", files, packed=True)
    from_dir = load(plain, dataset=dataset)
    write(tmp_path / "home/.keras/datasets/t", files, packed=True)
    from_keras = load(dataset=replace(dataset, keras_folder="t"))
    assert from_dir.source != from_keras.source
    digests = {from_dir.digest, from_keras.digest, load(packed, dataset=dataset).digest}
    assert digests == {expected.hexdigest()}
    others = [
        load(plain, dataset=dataset, train_limit=9),
        load(plain, dataset=dataset, test_limit=4),
        load(plain, dataset=dataset, validation_fraction=0.3),
        load(plain, dataset=dataset, validation_fraction=0.3, seed=1),
    ]
    assert len({other.digest for other in others} | digests) == 5


def test_limits_keep_the_first(tmp_path):
    dataset, files = tiny()
    loaded = load(write(tmp_path, files), dataset=dataset, train_limit=4, test_limit=5)
    np.testing.assert_array_equal(loaded.train_images, tiny_arrays()["train_images"][:4])
    np.testing.assert_array_equal(loaded.train_labels, tiny_arrays()["train_labels"][:4])
    assert len(loaded.test_images) == len(loaded.test_labels) == 5


@pytest.mark.parametrize("name", ["train_limit", "test_limit"])
@pytest.mark.parametrize("limit", [-1, 0, 11])
def test_limit_out_of_range(tmp_path, name, limit):
    dataset, files = tiny(test=10)
    message = refusal(write(tmp_path, files), dataset=dataset, **{name: limit})
    assert f"data.{name}: received {limit}, expected 1 to 10" in message


# The validation split


@pytest.mark.parametrize(("n", "fraction"), [(10, 0.1), (10, 0.5), (97, 0.2), (100, 0.33)])
@pytest.mark.parametrize("classes", [1, 3, 10])
def test_split_is_exact_and_stratified(tmp_path, n, fraction, classes):
    labels = np.random.default_rng(n).integers(0, classes, n, dtype=np.uint8)
    arrays = tiny_arrays(train=n) | {"train_labels": labels}
    arrays["train_images"].reshape(n, -1)[:, 0] = np.arange(n)  # each image carries its position
    dataset, files = describe({name: idx_bytes(a) for name, a in arrays.items()}, classes=10)
    loaded = load(write(tmp_path, files), dataset=dataset, validation_fraction=fraction)
    total = round(fraction * n)
    assert len(loaded.validation_images) == len(loaded.validation_labels) == total
    kept, cut = loaded.train_images[:, 0, 0], loaded.validation_images[:, 0, 0]
    assert sorted([*kept, *cut]) == list(range(n))
    assert (np.diff(kept.astype(int)) > 0).all()
    assert (np.diff(cut.astype(int)) > 0).all()
    np.testing.assert_array_equal(loaded.train_labels, labels[kept])
    np.testing.assert_array_equal(loaded.validation_labels, labels[cut])
    quotas = total * np.bincount(labels, minlength=10) / n
    assert (abs(np.bincount(loaded.validation_labels, minlength=10) - quotas) < 1).all()


def test_split_depends_on_the_seed_alone(tmp_path):
    dataset, files = tiny(train=90)
    write(tmp_path, files)

    def cut(seed, fraction=0.2):
        loaded = load(tmp_path, dataset=dataset, validation_fraction=fraction, seed=seed)
        return {image.tobytes() for image in loaded.validation_images}

    assert cut(0) == cut(0)
    assert cut(0) != cut(1)
    assert cut(0) < cut(0, fraction=0.4)


def test_split_is_cut_from_the_limited_set(tmp_path):
    dataset, files = tiny(train=90)
    loaded = load(write(tmp_path, files), dataset=dataset, train_limit=30, validation_fraction=0.1)
    assert (len(loaded.train_images), len(loaded.validation_images)) == (27, 3)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fraction_out_of_range(tmp_path, fraction):
    dataset, files = tiny()
    message = refusal(write(tmp_path, files), dataset=dataset, validation_fraction=fraction)
    assert f"data.validation_fraction: received {fraction}, expected 0 <= fraction < 1" in message


@pytest.mark.parametrize(("fraction", "part"), [(0.01, "0 of 10"), (0.99, "10 of 10")])
def test_split_with_an_empty_part(tmp_path, fraction, part):
    dataset, files = tiny()
    message = refusal(write(tmp_path, files), dataset=dataset, validation_fraction=fraction)
    assert f"{fraction}, which is {part} training images" in message
    assert "at least one image in each part" in message


def test_negative_seed(tmp_path):
    dataset, files = tiny()
    message = refusal(write(tmp_path, files), dataset=dataset, validation_fraction=0.5, seed=-1)
    assert "seed: received -1, expected 0 or more" in message


# The IDX parser


@given(st_numpy.arrays(np.uint8, st_numpy.array_shapes(min_dims=1, max_dims=4, max_side=4)))
def test_parse_round_trip(array):
    np.testing.assert_array_equal(idx.parse(idx_bytes(array), "x"), array)


@given(
    st.binary(max_size=64)
    | st.tuples(st.integers(0, 5), st.binary(max_size=40)).map(
        lambda parts: bytes([0, 0, 8, parts[0]]) + parts[1]
    )
    | st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(
        lambda sizes: bytes([0, 0, 8, len(sizes)]) + b"".join(s.to_bytes(4, "big") for s in sizes)
    )
)
def test_parse_raises_nothing_but_user_errors(content):
    try:
        assert idx_bytes(idx.parse(content, "x")) == content
    except UserError as error:
        said = str(error)
        if not (said.startswith("x: received ") and "data.dir=" in said and "\n" not in said):
            pytest.fail(said)


@given(st.integers(0, 19), st.integers(0, 255))
def test_parse_a_file_with_one_byte_changed(at, value):
    content = bytearray(idx_bytes(np.zeros((2, 2), np.uint8)))
    content[at % len(content)] = value
    try:
        assert idx_bytes(idx.parse(bytes(content), "x")) == content
    except UserError:
        assert at % len(content) < 12  # only the header can be wrong


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes that begin with nothing"),
        (b"\0\0", "2 bytes that begin with 00 00"),
        (b"PK\3\4rest", "8 bytes that begin with 50 4b 03 04"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "begin with 00 00 0d 01, expected an IDX file of unsigned"),
        (b"\0\0\x08\0", "00 00 08 00"),
        (b"\0\0\x08\5" + bytes(20), "00 00 08 05"),
        (b"\0\0\x08\3\0\0\0\1", "8 bytes, expected a header of 16"),
        (b"\0\0\x08\1\0\0\0\2a", "9 bytes, expected 10 for the 2 in its header"),
        (b"\0\0\x08\1\0\0\0\2abc", "11 bytes, expected 10"),
        (b"\0\0\x08\4" + b"\xff" * 16, "4294967295 x 4294967295 x 4294967295 x 4294967295"),
        (b"\0\0\x08\3" + bytes(4) + b"\xff" * 8, "the dimensions 0 x 4294967295 x 4294967295"),
    ],
)
def test_parse_says_what_it_found(content, message):
    with pytest.raises(UserError) as caught:
        idx.parse(content, "some-file")
    assert str(caught.value).startswith("some-file: received ")
    assert message in str(caught.value)


def test_parse_copies_nothing():
    content = idx_bytes(np.arange(6, dtype=np.uint8))
    array = idx.parse(content, "x")
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


# The folder the user names


def changed(**arrays):
    """The description of the good data set with files of other arrays."""
    dataset, files = tiny()
    return dataset, files | {f"{name}-idx": idx_bytes(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"test_labels": np.array([0, 1, 2, 0, 12], np.uint8)},
            "test_labels-idx (folder {dir}): received the label 12, expected 0 to 2, the "
            "classes of tiny",
        ),
        (
            {"train_images": np.zeros((10, 5, 3), np.uint8)},
            "train_images-idx (folder {dir}): received an array of 10 x 5 x 3, expected images of "
            "4 x 3",
        ),
        ({"train_images": np.zeros((10, 12), np.uint8)}, "received an array of 10 x 12, expected"),
        (
            {"train_labels": np.zeros(9, np.uint8)},
            "train_labels-idx (folder {dir}): received labels in an array of 9, expected 10, one "
            "for each image in train_images-idx",
        ),
        ({"test_labels": np.zeros((5, 1), np.uint8)}, "an array of 5 x 1, expected 5, one for"),
        ({"test_images": np.zeros((0, 4, 3), np.uint8)}, "the dimensions 0 x 4 x 3"),
        (
            {"train_labels": np.zeros(10, np.uint8)},
            "train_labels-idx (folder {dir}): received content that is not tiny's (SHA-256 ",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_dir_with_other_content(tmp_path, arrays, message, packed):
    dataset, files = changed(**arrays)
    said = refusal(write(tmp_path, files, packed), dataset=dataset)
    assert message.format(dir=tmp_path) in said
    assert "data.dir=" in said
    assert "\n" not in said


def test_dir_digest_mismatch_gives_both_digests(tmp_path):
    dataset, files = changed(train_labels=np.zeros(10, np.uint8))
    said = refusal(write(tmp_path, files), dataset=dataset)
    assert hashlib.sha256(files["train_labels-idx"]).hexdigest() in said
    assert f"expected SHA-256 {dataset.train_labels.sha256}" in said


def test_dir_with_a_truncated_gzip(tmp_path):
    dataset, files = tiny()
    path = write(tmp_path, files, packed=True) / "test_images-idx.gz"
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:-1], whole[:5], whole[:15] + b"\xff" * 20 + whole[35:]):
        path.write_bytes(content)
        said = refusal(tmp_path, dataset=dataset)
        assert f"{path} is truncated or damaged inside its gzip" in said
        assert "data.dir=" in said
        assert "\n" not in said


def test_dir_with_a_truncated_plain_file(tmp_path):
    dataset, files = tiny()
    files["train_images-idx"] = files["train_images-idx"][:-7]
    said = refusal(write(tmp_path, files), dataset=dataset)
    assert "train_images-idx" in said
    assert "received 129 bytes, expected 136 for the 10 x 4 x 3 in its header" in said


@pytest.mark.parametrize("packed", [False, True])
def test_dir_with_a_file_too_large(tmp_path, monkeypatch, packed):
    dataset, files = tiny()
    monkeypatch.setattr(idx, "MAX_BYTES", 2**20)
    files["train_images-idx"] += bytes(2**21)  # packed, a gzip bomb of 2 KB
    said = refusal(write(tmp_path, files, packed), dataset=dataset)
    assert "train_images-idx" in said
    assert "is larger than 1048576 bytes" in said


def test_dir_missing_or_incomplete(tmp_path):
    dataset, files = tiny()
    said = refusal(tmp_path / "none", dataset=dataset)
    assert f"data.dir={tmp_path / 'none'} cannot be used: no such folder; expected" in said
    (tmp_path / "file").touch()
    assert "it is not a folder" in refusal(tmp_path / "file", dataset=dataset)
    assert "too long" in refusal(tmp_path / ("x" * 300), dataset=dataset)
    write(tmp_path / "half", files, packed=True)
    (tmp_path / "half/train_labels-idx.gz").unlink()
    (tmp_path / "half/test_labels-idx.gz").unlink()
    said = refusal(tmp_path / "half", dataset=dataset)
    assert "it holds no train_labels-idx, test_labels-idx; expected" in said


def test_dir_is_the_only_source(tmp_path):
    dataset, files = tiny(keras_folder="t")
    write(tmp_path / "home/.keras/datasets/t", files)
    write(tmp_path / "cache/tiny", files)
    (tmp_path / "mine").mkdir()
    assert "it holds no train_images-idx" in refusal(tmp_path / "mine", dataset=dataset)


def test_dir_in_the_home_folder_and_names_that_browsers_change(tmp_path):
    dataset, files = tiny()
    folder = write(tmp_path / "home/mine", files)
    (folder / "train_images-idx").rename(folder / "train_images-idx.gz")  # unpacked on the way
    (folder / "test_images-idx").write_bytes(gzip.compress(files["test_images-idx"]))
    assert load("~/mine", dataset=dataset).source == f"folder {folder}"


# The cache


def test_cache_folders(tmp_path, monkeypatch):
    dataset, files = tiny()
    write(tmp_path / "cache/tiny", files)
    write(tmp_path / "given/tiny", files)
    write(tmp_path / "xdg/fmnist_lab/tiny", files)
    assert load(dataset=dataset).source == f"cache {tmp_path / 'cache/tiny'}"
    given = load(dataset=dataset, cache_dir=tmp_path / "given")
    assert given.source == f"cache {tmp_path / 'given/tiny'}"
    monkeypatch.delenv("FMNIST_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert load(dataset=dataset).source == f"cache {tmp_path / 'xdg/fmnist_lab/tiny'}"


def test_full_cache_takes_no_lock_and_writes_nothing(cache, monkeypatch):
    dataset, files = tiny()
    write(cache, files)
    monkeypatch.setattr(sources, "FileLock", None)
    load(dataset=dataset)
    assert filled(cache) == files
    assert not (cache / ".lock").exists()


@pytest.mark.parametrize("content", [b"", b"torn", b"\x1f\x8btorn"])
def test_damaged_cache_is_repaired(cache, capsys, content):
    dataset, files = tiny()
    with server(files) as (url, asked):
        write(cache, files | {"train_labels-idx": content})
        loaded = load(dataset=replace(dataset, url=url))
    assert filled(cache) == files
    assert loaded.source == f"cache {cache} and upstream {url}"
    np.testing.assert_array_equal(loaded.train_labels, tiny_arrays()["train_labels"])
    assert capsys.readouterr().err.count("Repairing the cache") == 1
    assert asked["/files/train_labels-idx.gz"] == 1
    if content[:2] != b"\x1f\x8b":  # a gzip that breaks off ends the reading of the folder
        assert sum(asked.values()) == 1


@pytest.mark.parametrize("where", ["root", "folder", "file"])
def test_unwritable_cache(tmp_path, cache, capsys, where):
    dataset, files = tiny(keras_folder="t")
    write(tmp_path / "home/.keras/datasets/t", files)
    if where == "file":  # a folder where a file should go: the first write fails
        (cache / "train_images-idx").mkdir(parents=True)
    else:
        blocked = cache if where == "folder" else cache.parent
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.touch()
    assert "Keras' folder" in load(dataset=dataset).source
    said = capsys.readouterr().err
    assert str(cache) in said
    assert "cannot be written" in said or "could not be filled" in said
    shutil.rmtree(tmp_path / "home")
    said = refusal(dataset=dataset)
    assert "No source has tiny" in said
    if where != "file":
        assert "writing to the cache " in said


def test_failed_write_leaves_nothing(cache, monkeypatch):
    dataset, files = tiny(keras_folder="t")
    write(Path.home() / ".keras/datasets/t", files)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    load(dataset=dataset)
    assert filled(cache) == {}


# The sources, in order


def test_sources_in_order(tmp_path, cache, monkeypatch, capsys):
    dataset, files = tiny()
    keras, system = tmp_path / "home/.keras/datasets/t", tmp_path / "system"
    with server(files) as (url, asked):
        dataset = replace(dataset, url=url, keras_folder="t", system_folder=str(system))
        write(keras, files, packed=True)
        write(system, files, packed=True)
        assert load(dataset=dataset).source == f"Keras' folder {keras}"
        assert filled(cache) == files
        assert load(dataset=dataset).source == f"cache {cache}"
        for folder in (cache, keras):
            shutil.rmtree(folder)
        assert load(dataset=dataset).source == f"system folder {system}"
        assert filled(cache) == files
        for folder in (cache, system):
            shutil.rmtree(folder)
        assert not asked
        assert capsys.readouterr().err == ""
        assert load(dataset=dataset).source == f"upstream {url}"
        assert filled(cache) == files
        assert asked == {f"/files/{name}.gz": 1 for name in files}
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"from {url}" in said


def test_progress_on_a_terminal(cache, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    dataset, files = tiny()
    with server(files) as (url, _):
        load(dataset=replace(dataset, url=url))
    said = capsys.readouterr()
    assert all(f"{name}.gz" in said.err for name in files)
    assert "bytes" in said.err
    assert said.out == ""


def test_keras_home(tmp_path, monkeypatch):
    dataset, files = tiny(keras_folder="t")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "k"))
    folder = write(tmp_path / "k/datasets/t", files, packed=True)
    assert load(dataset=dataset).source == f"Keras' folder {folder}"


def test_source_that_does_not_verify_is_skipped(tmp_path, cache):
    dataset, files = tiny(keras_folder="t", system_folder=str(tmp_path / "system"))
    wrong = {name: content[::-1] for name, content in files.items()}
    write(tmp_path / "home/.keras/datasets/t", wrong)
    write(tmp_path / "system", files)
    assert load(dataset=dataset).source == f"system folder {tmp_path / 'system'}"
    assert filled(cache) == files


def test_sources_complete_each_other(tmp_path):
    dataset, files = tiny(keras_folder="t", system_folder=str(tmp_path / "system"))
    keras = write(tmp_path / "home/.keras/datasets/t", files)
    (keras / "train_images-idx").unlink()
    system = write(tmp_path / "system", {"train_images-idx": files["train_images-idx"]})
    source = load(dataset=dataset).source
    assert source == f"Keras' folder {keras} and system folder {system}"


def not_found(request, body):
    request.send_error(404)


def truncated(request, body):
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[:-10])


def truncated_without_length(request, body):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(body[:-10])


def truncated_chunk(request, body):
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"ff\r\n" + body[:10])
    request.close_connection = True


def portal(request, body):
    plainly(request, b"<html>Please log in</html>")


def other_content(request, body):
    plainly(request, gzip.compress(gzip.decompress(body)[::-1]))


def endless(request, body):
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(2**16))
    except OSError:
        pass


def silent(request, body):
    time.sleep(0.8)


def not_http(request, body):
    request.wfile.write(b"hello\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_found, "HTTP Error 404"),
        (truncated, "train_images-idx.gz ended after "),
        (truncated_without_length, "train_images-idx.gz is truncated or damaged"),
        (truncated_chunk, "IncompleteRead"),
        (portal, "train_images-idx has SHA-256 "),
        (other_content, "train_images-idx has SHA-256 "),
        (endless, "train_images-idx.gz is larger than "),
        (silent, "timed out"),
        (not_http, "hello"),
    ],
)
def test_upstream_that_fails(cache, monkeypatch, answer, reason):
    monkeypatch.setattr(idx, "MAX_BYTES", 2**20)
    if answer is silent:
        monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.3)
    dataset, files = tiny()
    with server(files, answer) as (url, _):
        said = refusal(dataset=replace(dataset, url=url))
    assert f"  - upstream {url}: " in said
    assert reason in said
    assert filled(cache) == {}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "nonsense", "http://[bad/"])
def test_upstream_out_of_reach(url):
    dataset, _ = tiny(url=url)
    assert f"  - upstream {url}: " in refusal(dataset=dataset)


def test_good_files_survive_a_download_that_breaks_off(cache):
    dataset, files = tiny()

    def last_fails(request, body):
        (not_found if "test_labels" in request.path else plainly)(request, body)

    with server(files, last_fails) as (url, _):
        refusal(dataset=replace(dataset, url=url))
    with server(files) as (url, asked):
        load(dataset=replace(dataset, url=url))
    assert asked == {"/files/test_labels-idx.gz": 1}


def test_no_download(tmp_path):
    dataset, files = tiny(debian_package="tiny-package", system_folder=str(tmp_path / "system"))
    with server(files) as (url, asked):
        said = refusal(dataset=replace(dataset, url=url), download=False)
    assert not asked
    assert "data.download=false" in said


def test_no_source_left(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    dataset, _ = tiny(
        url="http://127.0.0.1:1/",
        keras_folder="t",
        debian_package="tiny-package",
        system_folder=str(tmp_path / "system"),
    )
    said = refusal(dataset=dataset).splitlines()
    keras = tmp_path / "home/.keras/datasets/t"
    packed = "train_images-idx.gz, train_labels-idx.gz, test_images-idx.gz, test_labels-idx.gz"
    assert said[:4] == [
        "No source has tiny. Tried:",
        f"  - cache {cache}: no such folder",
        f"  - Keras' folder {keras}: no such folder",
        f"  - system folder {tmp_path / 'system'}: no such folder",
    ]
    assert said[4].startswith("  - upstream http://127.0.0.1:1/: ")
    assert said[5:] == [
        "  - Debian package tiny-package: apt-get and dpkg-deb not installed",
        "Ways out:",
        f"  - data.dir=FOLDER, a folder that holds {packed}, packed or not",
        f"  - download {packed} by hand from http://127.0.0.1:1/ into {keras}",
        "  - Debian, Ubuntu: sudo apt-get install tiny-package",
    ]


# Several processes

LOAD_IN_A_PROCESS = """
import sys
from idx_files import tiny
from fmnist_lab.data import load
dataset, _ = tiny(url=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(load(dataset=dataset).digest, flush=True)
"""


def loading_process(url):
    """A process that has imported everything and loads when it is told to."""
    path = os.pathsep.join(
        [str(Path(__file__).parent / "helpers"), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-c", LOAD_IN_A_PROCESS, url],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_make_one_download(cache):
    dataset, files = tiny()

    def slowly(request, body):
        time.sleep(0.05)
        plainly(request, body)

    with server(files, slowly) as (url, asked):
        processes = [loading_process(url) for _ in range(8)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [(*process.communicate(timeout=30), process.returncode) for process in processes]
    expected = load(dataset=dataset).digest
    assert [(out.strip(), code) for out, _, code in results] == [(expected, 0)] * 8
    assert asked == {f"/files/{name}.gz": 1 for name in files}
    assert filled(cache) == files


def test_killed_download_leaves_nothing_behind(cache):
    dataset, files = tiny()
    started, release = threading.Event(), threading.Event()

    def stuck(request, body):
        started.set()
        release.wait(10)

    with server(files, stuck) as (url, _):
        process = loading_process(url)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert started.wait(20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        release.set()
    assert filled(cache) == {}
    with server(files) as (url, _):
        load(dataset=replace(dataset, url=url))
    assert filled(cache) == files


# The Debian package

APT_GET = """#!/bin/sh
echo "$@" >> {log}
for last; do :; done
case "$*" in
*" update") test ! -e {root}/update-fails || {{ echo "E: a list failed" >&2; exit 100; }};;
*" download tiny-package") cp {root}/package.deb tiny-package_1_all.deb;;
*) echo "E: Unable to locate package $last" >&2; exit 100;;
esac
"""
DPKG_DEB = """#!/bin/sh
test "$1" = -x && cp -r {root}/content/. "$3"
"""


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """Fakes of apt-get and dpkg-deb that serve what a test puts into `content`."""
    root = tmp_path / "debian"
    (root / "bin").mkdir(parents=True)
    (root / "content").mkdir()
    (root / "package.deb").touch()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (root / "bin" / name).write_text(script.format(log=root / "log", root=root))
        (root / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(packages.tempfile, "tempdir", str(temporary))
    yield root
    assert list(temporary.iterdir()) == []


def packaged(**others):
    """A tiny data set that only a package has."""
    return tiny(debian_package="tiny-package", system_folder="/nowhere/tiny", **others)


def test_debian_package(cache, debian, capsys):
    dataset, files = packaged()
    write(debian / "content/nowhere/tiny", files, packed=True)
    (debian / "update-fails").touch()  # a third party's list, say
    assert load(dataset=dataset).source == "Debian package tiny-package"
    assert filled(cache) == files
    assert capsys.readouterr().err == "Fetching the Debian package tiny-package with apt-get\n"
    update, download = (debian / "log").read_text().splitlines()
    for command in (update, download):
        assert "-oDir::State::Lists=" in command
        assert "-oDir::Cache=" in command


def test_debian_is_asked_after_upstream(debian):
    dataset, files = packaged()
    write(debian / "content/nowhere/tiny", files)
    with server(files, not_found) as (url, asked):
        loaded = load(dataset=replace(dataset, url=url))
    assert asked
    assert loaded.source == "Debian package tiny-package"


def test_debian_package_unknown(debian):
    dataset, _ = tiny(debian_package="other", system_folder="/nowhere/tiny")
    said = refusal(dataset=dataset)
    assert "  - Debian package other: E: Unable to locate package other" in said


def test_debian_package_with_other_content(debian):
    dataset, files = packaged()
    write(debian / "content/nowhere/tiny", {"train_images-idx": files["test_images-idx"]})
    said = refusal(dataset=dataset)
    assert "train_images-idx has SHA-256 " in said
    assert "it holds no train_labels-idx, test_images-idx, test_labels-idx" in said


def test_debian_hangs(debian, monkeypatch):
    monkeypatch.setattr(packages, "COMMAND_SECONDS", 0.2)
    (debian / "bin/apt-get").write_text("#!/bin/sh\nexec sleep 5\n")
    assert "apt-get took more than 0 s" in refusal(dataset=packaged()[0])


def evil_package(path, members):
    """Write a .deb, which is an `ar` of three members, with any names and links inside."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:gz"):
        pass
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": control.getvalue(),
        "data.tar.gz": tar.getvalue(),
    }
    ar = b"!<arch>\n"
    for name, content in parts.items():
        ar += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        ar += content + b"\n" * (len(content) % 2)
    path.write_bytes(ar)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_evil_package_does_not_escape(tmp_path, cache, debian):
    (debian / "bin/dpkg-deb").unlink()  # the real one
    dataset, files = packaged()
    outside = write(tmp_path / "outside", {"victim": b"precious"})
    evil_package(
        debian / "package.deb",
        {
            "./link": str(outside),
            "./link/victim": b"overwritten",
            "../../../outside/planted": b"planted",
            f"{outside}/absolute": b"planted",
            "./nowhere/tiny/train_images-idx": str(outside / "victim"),
            "./nowhere/tiny/train_labels-idx": "/dev/zero",
            "./nowhere/tiny/test_images-idx": files["test_images-idx"],
        },
    )
    said = refusal(dataset=dataset)
    assert "Debian package tiny-package: " in said
    assert filled(outside) == {"victim": b"precious"}
    assert set(filled(cache)) <= {"test_images-idx"}


# The real thing


def test_the_description_of_fashion_mnist():
    assert [file.name for file in FASHION_MNIST.files] == [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ]
    assert len({file.sha256 for file in FASHION_MNIST.files}) == 4
    assert all(isinstance(file, IdxFile) and len(file.sha256) == 64 for file in FASHION_MNIST.files)
    assert len(FASHION_MNIST.class_names) == 10
    assert FASHION_MNIST.class_names[9] == "Ankle boot"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_real_debian_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 10.0)
    only_debian = replace(FASHION_MNIST, url=None, keras_folder=None)
    if Path(FASHION_MNIST.system_folder).is_dir():
        pytest.skip("the package is installed, so nothing would be fetched")
    loaded = load(dataset=only_debian)
    assert loaded.source == "Debian package dataset-fashion-mnist"
    assert loaded.train_images.shape == (60000, 28, 28)
    assert np.bincount(loaded.train_labels).tolist() == [6000] * 10
    assert np.bincount(loaded.test_labels).tolist() == [1000] * 10
    again = load(dataset=only_debian, download=False)
    assert again.source == f"cache {tmp_path / 'cache/fashion-mnist'}"
    assert again.digest == loaded.digest
