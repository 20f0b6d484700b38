"""The files of an audit: CSV files, contact sheets, one HTML page and a summary."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.studies.audit import SPLITS, WORDS, Audit, sentences
from fmnist_lab.system import durable
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    from fmnist_lab.figures.style import Picture as Drawing

PAIRS_SHOWN, LABELS_SHOWN = 36, 48  # on a contact sheet
ROWS_SHOWN = 1000  # in a table of the page
FILES = (
    *("near_duplicates.csv", "leaked_images.csv", "suspect_labels.csv"),
    *("near_duplicates.png", "suspect_labels_train.png", "suspect_labels_test.png"),
    *("audit.html", "summary.md"),
)


class Picture(NamedTuple):
    """A picture of the page: a PNG in base64, and the most that it is shown at, in pixels."""

    title: str
    content: str
    width: int


class More(NamedTuple):
    """A table that is folded away under its summary."""

    summary: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Picture]
    more: More | None


def write(audit: Audit, folder: Path, *, title: str, command: str) -> list[Path]:
    """Write the CSV files, the contact sheets, `audit.html` and `summary.md`.

    Args:
        audit: The findings.
        folder: Where to. Files of these names are replaced.
        title: The page's title.
        command: The command that made the audit.

    Returns:
        The files. A contact sheet with nothing on it is left out.
    """
    tables = {
        "near_duplicates.csv": audit.duplicates,
        "leaked_images.csv": audit.leaked,
        "suspect_labels.csv": audit.suspects,
    }
    sheets = _sheets(audit)
    contents = {
        **{
            name: frame.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
            for name, frame in tables.items()
        },
        **sheets,
        "audit.html": _page(audit, sheets, title, command).encode(),
        "summary.md": _markdown(audit, title, command).encode(),
    }
    for name in FILES:
        if name in contents:
            (folder / name).write_bytes(contents[name])
        else:
            # A sheet of an earlier audit would contradict the summary.
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in FILES if name in contents]


def prepare(folder: Path, *, overwrite: bool) -> None:
    """Make the folder of an audit, or refuse one that has the files of another.

    Args:
        folder: The folder.
        overwrite: Whether its files may be replaced.

    Raises:
        UserError: It is a file, or has one of `FILES`, which are not to be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: received '{folder}', which is a file; expected a folder")
    found = [name for name in FILES if (folder / name).exists()]
    if found and not overwrite:
        raise UserError(
            f"--output: received '{folder}', which has {found[0]} already; name another folder, or "
            "add --overwrite to replace the audit there"
        )
    # Now, rather than after minutes, it turns out that it cannot be made.
    durable.make_folder(folder)


def _sheets(audit: Audit) -> dict[str, bytes]:
    """Return the contact sheets as PNG by the names of their files."""
    found = {}
    if len(audit.duplicates):
        found["near_duplicates.png"] = _pair_sheet(audit).png()
    for split in audit.labels:
        if (audit.suspects["split"] == split).any():
            found[f"suspect_labels_{split}.png"] = _label_sheet(audit, split).png()
    return found


def _pair_sheet(audit: Audit) -> Drawing:
    from fmnist_lab.figures.contact_sheets import Line, contact_sheet
    from fmnist_lab.figures.style import GREY, RED

    pairs = audit.duplicates
    # Pairs of a test and a training image matter most, and all distances are to be seen.
    across = pairs["split"] != pairs["other_split"]
    ordered = pd.concat([pairs[across], pairs[~across]])
    half = PAIRS_SHOWN * 2 // 3 if across.any() and not across.all() else PAIRS_SHOWN
    chosen = pd.concat(
        [
            _spread(ordered[: across.sum()], half if across.any() else 0),
            _spread(ordered[across.sum() :], PAIRS_SHOWN - min(half, int(across.sum()))),
        ]
    )
    names = audit.dataset.class_names
    groups, lines = [], []
    for pair in chosen.itertuples():
        sides = ((pair.other_split, pair.other_index), (pair.split, pair.index))
        groups.append(np.stack([audit.images[SPLITS.index(s)][index] for s, index in sides]))
        label, other = names[pair.label], names[pair.other_label]
        same = pair.label == pair.other_label
        lines.append(
            [
                Line(" and ".join(f"{split} {index}" for split, index in sides)),
                Line(_alike(pair), GREY),
                Line(label) if same else Line(f"{other} / {label}", RED),
            ]
        )
    which = f"All {counted(len(pairs), 'pair')}"
    if len(chosen) < len(pairs):
        which = f"{len(chosen):,} of {len(pairs):,} pairs, evenly chosen"
    note = (
        f"{which} from the closest to the least close, first those of a training and a test "
        "image. Below: the images, L2 distance of "
        "pixels / 255 or, for altered copies, how they differ, and the label; red where the labels "
        "differ."
    )
    return contact_sheet(groups, lines, "Near duplicates", note, columns=6)


def _spread(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most so many rows, evenly chosen, the first and the last among them."""
    if len(pairs) <= most:
        return pairs
    return pairs.iloc[np.linspace(0, len(pairs) - 1, most).round().astype(int)]


def _alike(pair: Any) -> str:
    if pair.kind != "altered":
        return f"distance {pair.distance:.2f}"
    ways = []
    for pixels, (back, on) in (
        (pair.shift_down, ("up", "down")),
        (pair.shift_right, ("left", "right")),
    ):
        if pixels:
            ways.append(on if pixels > 0 else back)
    moved = f"{' '.join(ways)} 1 px, " if ways else ""
    return f"{moved}contrast {pair.contrast:.2f}"


def _label_sheet(audit: Audit, split: str) -> Drawing:
    from fmnist_lab.figures.contact_sheets import Line, contact_sheet
    from fmnist_lab.figures.style import GREY, RED

    names = audit.dataset.class_names
    images = audit.images[SPLITS.index(split)]
    suspects = audit.suspects[audit.suspects["split"] == split]
    chosen = suspects.head(LABELS_SHOWN)
    lines = [
        [
            Line(f"{names[suspect.label]} {_share(suspect.probability)}", RED),
            Line(f"{names[suspect.likely_label]}?"),
            Line(f"{split} {suspect.index}", GREY),
        ]
        for suspect in chosen.itertuples()
    ]
    which = f"The {len(chosen):,} least probable of" if len(chosen) < len(suspects) else "All"
    note = (
        f"{which} {len(suspects):,} suspect labels. Red: the given "
        "label and its probability by models that have not seen the image. Black: the class that "
        "they find most probable."
    )
    groups = [images[index][None] for index in chosen["index"]]
    title = f"Suspect labels of {WORDS[split]} images"
    return contact_sheet(groups, lines, title, note, columns=8)


def _share(probability: float) -> str:
    """Return a small probability as a percentage."""
    return f"{probability:.2%}" if probability >= 0.0001 else "< 0.01%"


def _page(audit: Audit, sheets: dict[str, bytes], title: str, command: str) -> str:
    """Return the HTML page. It holds everything it needs, so it can be read without a network."""
    import jinja2

    def source(name: str) -> str:
        return files("fmnist_lab.studies").joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("audit.html.j2").render(
        title=title,
        command=command,
        findings=sentences(audit),
        sections=[_duplicates_section(audit, sheets), *_label_sections(audit, sheets)],
    )


def _duplicates_section(audit: Audit, sheets: dict[str, bytes]) -> Section:
    pairs, names = audit.duplicates, audit.dataset.class_names
    rows = [
        (
            f"{pair.split} {pair.index}",
            f"{pair.other_split} {pair.other_index}",
            pair.kind if pair.kind != "altered" else f"altered: {_alike(pair)}",
            f"{pair.distance:.3f}",
            names[pair.label],
            names[pair.other_label],
        )
        for pair in pairs.head(ROWS_SHOWN).itertuples()
    ]
    headings = ("image to leave out", "is like", "how", "distance", "label", "other label")
    return Section(
        title="Near duplicates",
        text="The number of images that have another at a distance below each threshold, L2 of "
        "pixels / 255. Of two images that are alike, data.exclude=near_duplicates.csv leaves out "
        "the later training image and data.exclude_test=near_duplicates.csv the test image. "
        "data.exclude=leaked_images.csv leaves out the training images that are like a test image, "
        "and data.exclude_test=leaked_images.csv the test images that are like a training image.",
        headings=_count_headings(audit),
        rows=_count_rows(audit),
        pictures=_pictures(sheets, "near_duplicates.png"),
        more=_more(len(pairs), "pair", headings, rows),
    )


def _count_headings(audit: Audit) -> Sequence[str]:
    return ("images", "of", "near", *(f"below {name}" for name in list(audit.counts)[3:]))


def _count_rows(audit: Audit) -> Sequence[Sequence[str]]:
    return [
        (
            f"{WORDS[row[0]]} images",
            f"{row[1]:,}",
            f"a{'nother' if row[0] == row[2] else ''} {WORDS[row[2]]} image",
            *(f"{count:,}" for count in row[3:]),
        )
        for row in audit.counts.itertuples(index=False)
    ]


def _label_sections(audit: Audit, sheets: dict[str, bytes]) -> list[Section]:
    names = audit.dataset.class_names
    sections = []
    for split in audit.labels:
        suspects = audit.suspects[audit.suspects["split"] == split]
        rows = [
            (
                f"{split} {suspect.index}",
                names[suspect.label],
                _share(suspect.probability),
                names[suspect.likely_label],
            )
            for suspect in suspects.head(ROWS_SHOWN).itertuples()
        ]
        headings = ("image", "label", "its probability", "more likely")
        sections.append(
            Section(
                title=f"Suspect labels of {WORDS[split]} images",
                text="Each image was predicted by models that had not seen it. "
                f"data.exclude{'_test' * (split == 'test')}=suspect_labels.csv leaves these "
                "images out; a copy of the file that ends sooner leaves out the worst alone.",
                headings=(),
                rows=(),
                pictures=_pictures(sheets, f"suspect_labels_{split}.png"),
                more=_more(len(suspects), "suspect label", headings, rows),
            )
        )
    return sections


def _pictures(sheets: dict[str, bytes], name: str) -> Sequence[Picture]:
    if name not in sheets:
        return ()
    # The width in the PNG's header; it has two pixels per CSS pixel, as it is for 144 dpi.
    width = int.from_bytes(sheets[name][16:20], "big")
    return (Picture(name, base64.b64encode(sheets[name]).decode(), round(width * 0.75)),)


def _more(
    count: int, noun: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> More | None:
    if not rows:
        return None
    every = counted(count, noun)
    summary = f"All {every}" if count <= len(rows) else f"The first {len(rows):,} of {every}"
    return More(summary, headings, rows)


def _markdown(audit: Audit, title: str, command: str) -> str:
    lines = [_count_headings(audit), ["---"] * len(_count_headings(audit)), *_count_rows(audit)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"# {title}", f"```\n{command}\n```", *sentences(audit), table]) + "\n"
