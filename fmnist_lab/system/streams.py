"""Standard output and error that cannot fail a program, whatever has become of the terminal.

A run is worth more than its output: it goes on if nobody can read the output any more. A character
that the terminal does not know is shown as one that it knows.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Replacements for characters whose parts and kind in Unicode do not tell one.
STAND_INS = {
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’‚", "'"),  # noqa: RUF001
    **dict(
        zip(
            "±×÷·•√∞→←≤≥≠≈−ßæÆœŒøØłŁ",  # noqa: RUF001
            "+- x / . * sqrt inf -> <- <= >= != ~ - ss ae AE oe OE o O l L".split(),  # noqa: SIM905
            strict=True,
        )
    ),
}
TRANSLITERATE = "fmnist_lab.transliterate"


def transliterate(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that an encoding lacks by one that it has; an error handler of `codecs`.

    Bytes of a file name that are no text in this locale, which Python keeps as lone surrogates,
    go to the terminal as they are.

    Raises:
        UnicodeError: The error is about decoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _stand_in(character, error.encoding), error.start + 1


def _stand_in(character: str, encoding: str) -> str:
    """Return the nearest thing to a character that an encoding has."""
    kind = unicodedata.category(character)
    plain = STAND_INS.get(character) or {"Pd": "-", "Zs": " "}.get(kind, "")
    if not plain:
        parts = unicodedata.normalize("NFKD", character)
        plain = "".join(part for part in parts if not unicodedata.combining(part))
    try:
        plain.encode(encoding)
    except UnicodeEncodeError:
        return "?"
    return plain


# Why a standard stream was given up, by its descriptor.
faults: dict[int, OSError] = {}


class _Lasting(io.FileIO):
    """A standard stream's descriptor, that takes what is written whoever has left."""

    def write(self, data: Any, /) -> int:
        """Write, and once that fails, write to nobody.

        What a program says when its terminal has gone, such as how to go on, goes to standard
        error where that is a file.
        """
        try:
            while (written := super().write(data)) is None:
                # Another program has asked for a pipe that does not wait.
                select.select([], [self], [])
        except OSError as error:
            descriptor = self.fileno()
            faults.setdefault(descriptor, error)
            if error.errno == errno.EIO and not os.path.sameopenfile(descriptor, 2):
                os.dup2(2, descriptor)
                return self.write(data)
            _to_nobody(descriptor)
            return len(data)
        return written


def secure() -> None:
    """Make standard output and error of this process take everything, and never fail it.

    Streams that something else has put there, such as a notebook, stay as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file to be opened, such as a database, would be taken for the terminal.
            _to_nobody(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            nobody = open(os.devnull, "w", encoding="utf-8", errors=TRANSLITERATE)  # noqa: PTH123, SIM115
            setattr(sys, name, nobody)
        elif isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(stream, descriptor))


def flush() -> None:
    """Flush standard output and error, if they can be."""
    for stream in (sys.stdout, sys.stderr):
        # A callback may have closed the stream.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _lasting(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    """Return a stream like another that goes on when it cannot write."""
    with suppress(OSError):
        stream.flush()
    raw = _Lasting(descriptor, "w", closefd=False)
    raw.name = stream.name
    unbuffered = isinstance(stream.buffer, io.RawIOBase)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=TRANSLITERATE,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _to_nobody(descriptor: int) -> None:
    nobody = os.open(os.devnull, os.O_RDWR)
    if nobody == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(nobody, descriptor)
        os.close(nobody)


codecs.register_error(TRANSLITERATE, transliterate)


@contextmanager
def notes_held_back(*, shown_on_failure: bool = True) -> Iterator[None]:
    """Keep from the terminal what C++ code writes to the file descriptor of standard error.

    Args:
        shown_on_failure: Whether it is written after all if the block raises.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(terminal, 2)
            if shown_on_failure:
                notes.seek(0)
                sys.stderr.write(notes.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
