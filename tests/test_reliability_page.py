"""docs/reliability.md: every test that it names is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/reliability.md"


def named() -> list[tuple[str, str]]:
    """Files and tests as the page names them; "…::" means the file before."""
    found, file = [], ""
    for word, test in re.findall(r"`(test_\w+\.py|…)(?:::(test_\w+))?`", PAGE.read_text()):
        file = file if word == "…" else word
        found.append((file, test))
    return found


def test_every_test_that_the_page_names_is_there():
    assert len(named()) > 30
    for file, test in named():
        text = (TESTS / file).read_text()
        assert not test or re.search(rf"^def {test}\(", text, re.M), f"{file}::{test}"
