"""Pictures that a notebook shows."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from fmnist_lab.errors import UserError


class Picture:
    """A picture that shows itself in a notebook, and is made when it is first looked at.

    Args:
        name: Its name.
        make: Returns it as PNG.
    """

    def __init__(self, name: str, make: Callable[[], bytes]) -> None:
        self.name = name
        self._make = make

    @cached_property
    def png(self) -> bytes:
        """The picture as PNG."""
        return self._make()

    def save(self, file: str | Path) -> Path:
        """Write it as PNG.

        Args:
            file: The file's name.

        Returns:
            The file.

        Raises:
            UserError: The name does not end in .png, or the file cannot be written.
        """
        path = Path(file)
        if path.suffix.lower() != ".png":
            raise UserError(f"received '{file}', expected a file's name that ends in .png")
        try:
            path.write_bytes(self.png)
        except OSError as error:
            raise UserError(f"received '{file}', which cannot be written: {error}") from None
        return path

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<Picture {self.name!r}; save(FILE) writes it as PNG>"


class Pictures(Mapping[str, Picture]):
    """Pictures by name. A notebook shows all of them, `pictures["gap"]` shows one.

    Args:
        makers: What makes each of them, by name.

    >>> Pictures({"gap": lambda: b"PNG"})["gap"].png
    b'PNG'
    """

    def __init__(self, makers: Mapping[str, Callable[[], bytes]]) -> None:
        self._pictures = {name: Picture(name, make) for name, make in makers.items()}

    def __getitem__(self, name: str) -> Picture:
        try:
            return self._pictures[name]
        except KeyError:
            raise KeyError(f"{name!r}; there are {', '.join(self._pictures) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __repr__(self) -> str:
        return f"<Pictures: {', '.join(self) or 'none'}>"

    def _repr_html_(self) -> str:
        return "\n".join(map(_image, self.values())) or "no pictures"


def _image(picture: Picture) -> str:
    """Return a picture as HTML."""
    data = base64.b64encode(picture.png).decode()
    style = "max-width:100%;height:auto"
    name = html.escape(picture.name)
    return f'<img alt="{name}" title="{name}" style="{style}" src="data:image/png;base64,{data}">'
