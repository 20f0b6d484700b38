"""Photographs: any file in, what a model sees out."""

import io
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fmnist_lab
from fmnist_lab import photographs
from fmnist_lab.benchmark import photographs as benchmark
from fmnist_lab.photographs import Photograph, UnreadablePhotograph, files, read
from fmnist_lab.tracking import modelfiles

EXAMPLES = Path(fmnist_lab.__file__).parents[1] / "examples"
DRAWN = SimpleNamespace(**runpy.run_path(str(EXAMPLES / "photographs.py")))
PICTURES = {picture.name: picture for picture in DRAWN.PICTURES}
BOOT = PICTURES["telephone.jpg"]._replace(name="boot.png", size=(200, 260), more=())
SHIRT = PICTURES["white_on_white.jpg"]


def drawn(picture) -> Image.Image:
    return DRAWN.draw(picture)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def levels(photograph: Photograph) -> np.ndarray:
    return photograph.pixels.astype(int)


def differ(one: Photograph, other: Photograph) -> float:
    """The mean difference of two pictures' pixels, in levels."""
    return float(np.abs(levels(one) - levels(other)).mean())


def place(picture) -> tuple[float, ...]:
    """The object's box as shares of the upright picture, as the script has drawn it."""
    width, height = DRAWN.upright_size(picture)
    whole, _ = DRAWN.object_masks(picture, (width, height))
    box = whole.point(lambda level: 255 * (level > 127)).getbbox()
    return tuple(edge / (width, height)[at % 2] for at, edge in enumerate(box))


SMALL = [name for name, each in PICTURES.items() if max(each.size) <= 400]
REST = [name for name in PICTURES if name not in SMALL]
ALL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


@pytest.mark.parametrize("name", ALL)
def test_drawn_pictures_are_found_where_they_are_and_seen_light_on_dark(name, tmp_path):
    picture = PICTURES[name]
    found = read(DRAWN.write(picture, tmp_path))
    assert found.size == DRAWN.upright_size(picture)
    if name == "ready.png":
        assert not found.converted
        return
    box = [edge / found.size[at % 2] for at, edge in enumerate(found.box)]
    if name not in ("striped.jpg", "smallest.png", "shadow.jpg"):  # Parts of them blend in.
        within = 0.02 * max(box[2] - box[0], box[3] - box[1]) + 1.5 / min(found.size)
        assert box == pytest.approx(place(picture), abs=within)
    pixels = found.pixels
    assert (pixels.shape, pixels.dtype, pixels.max()) == ((28, 28), np.uint8, 255)
    rows, columns = (np.flatnonzero((pixels > 12).any(axis)) for axis in (1, 0))
    assert max(len(rows), len(columns)) >= 27
    for there in (rows, columns):
        assert abs(there[0] - (27 - there[-1])) <= 2  # in the middle
    assert max(found.thumbnail.shape[:2]) <= photographs.THUMBNAIL


@pytest.mark.parametrize(
    ("name", "said", "negated"),
    [
        ("shop.jpg", "white (25", True),
        ("black_on_black.png", "black (4)", False),
        ("pale_grey.jpg", "pale grey (214)", True),
        ("white_on_pale_grey.jpg", "pale grey (205)", False),
        ("blue_ground.jpg", "blue (8", False),
        ("transparent.png", "transparent", True),
        ("white_transparent.webp", "transparent", False),
    ],
)
def test_the_background_is_found_and_said(name, said, negated, tmp_path):
    picture = PICTURES[name]
    if max(picture.size) > 400:
        scale = 300 / max(picture.size)
        picture = picture._replace(size=tuple(round(scale * side) for side in picture.size))
    found = read(DRAWN.write(picture, tmp_path))
    assert found.background.startswith(said)
    assert found.negated == negated


def test_all_orientations_of_exif_are_the_same_picture():
    upright, seen = drawn(BOOT), read(saved(drawn(BOOT)))
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, how in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("PNG", "TIFF", "WEBP"):
            more = {"lossless": True} if kind == "WEBP" else {}
            again = read(saved(upright.transpose(how), kind, exif=exif, **more))
            assert (again.size, again.box) == (seen.size, seen.box)
            assert np.array_equal(again.pixels, seen.pixels), (orientation, kind)


def test_the_mode_and_the_format_of_a_file_make_no_difference():
    image = drawn(BOOT)
    seen = read(saved(image))
    grey = image.convert("L")
    sixteen = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    for name, content, most in [
        ("bytes of a BMP", saved(image, "BMP"), 0),
        ("grey", saved(grey), 1),
        ("16 bit", saved(sixteen), 1),
        ("16 bit TIFF", saved(sixteen, "TIFF"), 1),
        ("32 bit", saved(Image.fromarray(np.asarray(sixteen, np.int32)), "TIFF"), 1),
        ("fractions", saved(Image.fromarray(np.asarray(grey, np.float32) / 255), "TIFF"), 1),
        ("palette", saved(image.quantize(16)), 4),
        (
            "GIF",
            saved(image, "GIF", save_all=True, append_images=[Image.new("RGB", (200, 260))]),
            4,
        ),
        ("CMYK", saved(image.convert("CMYK"), "JPEG", quality=95), 3),
        ("JPEG", saved(image, "JPEG", quality=95), 1),
        ("poor JPEG", saved(image, "JPEG", quality=30), 20),
        ("opaque alpha", saved(image.convert("RGBA")), 0),
        ("grey with alpha", saved(image.convert("LA")), 1),
        ("1 bit", saved(image.convert("1", dither=Image.Dither.NONE)), 60),
    ]:
        assert differ(read(content), seen) <= most, name


def test_a_large_picture_of_16_bits_is_shrunk_before_it_is_converted():
    levels = np.full((1500, 2100), 60000, np.uint16)
    levels[300:900, 600:1800] = 1000
    found = read(saved(Image.fromarray(levels), "TIFF"))
    assert found.box == pytest.approx((600, 300, 1800, 900), abs=15)
    assert found.background == "pale grey (233)"


def test_paths_bytes_and_streams_are_read_alike(tmp_path):
    content = saved(drawn(BOOT))
    (tmp_path / "boot").write_bytes(content)
    with (tmp_path / "boot").open("rb") as stream:
        for source in (tmp_path / "boot", str(tmp_path / "boot"), stream, io.BytesIO(content)):
            assert np.array_equal(read(source).pixels, read(content).pixels)


def test_images_of_the_data_set_pass_as_they_are_and_their_negatives_do_not(pixels):
    for image in pixels.test_images[:50]:
        found = read(saved(Image.fromarray(image)))
        assert not found.converted
        assert np.array_equal(found.pixels, image)
        negative = read(saved(Image.fromarray(255 - image)))
        assert negative.converted
        assert np.abs(levels(negative) - image).mean() < 1


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_enlarged_test_images_come_back(kind, pixels, tmp_path):
    write, _ = benchmark.KINDS[kind]
    for at in range(0, 24, 4):
        write(pixels.test_images[at], (90, 20, 60), tmp_path / "x")
        found = read(tmp_path / "x")
        both = np.stack([found.pixels.ravel(), pixels.test_images[at].ravel()])
        assert np.corrcoef(both)[0, 1] > 0.8


def test_a_picture_in_colour_keeps_its_colours_and_its_background():
    found = read(saved(drawn(BOOT)), (20, 24), colour=True)
    assert (found.pixels.shape, found.negated) == ((20, 24, 3), False)
    assert found.pixels[0, 0] == pytest.approx([228, 226, 222], abs=2)
    assert found.pixels[12, 15] == pytest.approx(BOOT.colour, abs=30)
    small = Image.new("RGB", (24, 20), "red")
    assert not read(saved(small), (20, 24), colour=True).converted


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims to have so many pixels, and has none."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 0) + b"IDAT" + bytes(4)


HEIC = b"\0\0\0\x18ftypheic" + bytes(30)
BAD = {
    "nothing": (b"", "cannot be read as an image"),
    "text": (b"no picture", "its format is unknown"),
    "cut off": (saved(drawn(BOOT), "JPEG")[:900], "cannot be read as an image"),
    "a bomb": (png_header(9000, 9000), "more than 64 million pixels"),
    "a larger bomb": (png_header(60000, 60000), "more than 64 million pixels"),
    "one pixel": (saved(Image.new("RGB", (1, 1), "red")), "one colour and no object"),
    "one colour": (saved(Image.new("RGB", (300, 200), "white"), "JPEG"), "one colour"),
    "invisible": (saved(Image.new("RGBA", (300, 200))), "transparent everywhere"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_told_in_a_sentence(name):
    content, reason = BAD[name]
    with pytest.raises(UnreadablePhotograph) as caught:
        read(content)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_are_told(tmp_path):
    for path, reason in ((tmp_path / "x.png", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(UnreadablePhotograph, match=reason):
            read(path)


def test_a_heic_picture_without_the_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    files.formats.cache_clear()
    (tmp_path / "x.heic").write_bytes(HEIC)
    for source in (HEIC, tmp_path / "x.heic", io.BytesIO(HEIC)):
        with pytest.raises(UnreadablePhotograph, match=r"pip install 'fmnist_lab\[heic\]'"):
            read(source)
    files.formats.cache_clear()


def test_a_heic_picture_with_the_extra():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    files.formats.cache_clear()
    assert differ(read(saved(drawn(BOOT), "HEIF", quality=90)), read(saved(drawn(BOOT)))) < 4


def test_pictures_of_any_shape_and_noise_are_read_or_told():
    rng = np.random.default_rng(0)
    for width, height in [(1, 2), (2, 1), (3, 3), (1, 500), (900, 2), (27, 28), (28, 28), (65, 64)]:
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        flat = np.full((height, width, 3), 250, np.uint8)
        flat[height // 2, width // 2] = 10
        for array in (noise, flat):
            try:
                assert read(saved(Image.fromarray(array))).pixels.shape == (28, 28)
            except UnreadablePhotograph:
                continue


def test_dust_is_not_the_object_and_a_white_shirt_on_white_is(tmp_path):
    clean = PICTURES["dust.jpg"]._replace(name="clean.jpg", more=())
    with_dust, without = (
        read(DRAWN.write(each, tmp_path)) for each in (PICTURES["dust.jpg"], clean)
    )
    assert with_dust.box == pytest.approx(without.box, abs=4)
    left, top, right, bottom = read(DRAWN.write(SHIRT, tmp_path)).box
    assert (right - left) / SHIRT.size[0] > 0.6
    assert (bottom - top) / SHIRT.size[1] > 0.5


def test_the_package_works_alone(tmp_path):
    """It is shipped inside logged models, where there is no package around it."""
    modelfiles._ship(tmp_path)
    (tmp_path / "boot.png").write_bytes(saved(drawn(BOOT)))
    program = (
        "import sys; from fmnist_served.photographs import read; assert 'fmnist_lab' not in "
        "sys.modules; sys.stdout.buffer.write(read('boot.png').pixels.tobytes())"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == read(saved(drawn(BOOT))).pixels.tobytes()


@pytest.mark.slow
def test_models_are_as_accurate_on_files_as_on_arrays(backend, trained, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "track", lambda each, *_, **__: each)
    benchmark.photograph_accuracy([trained.model], images=1000, store=trained.uri)
    assert "on black" in capsys.readouterr().out
