"""The code of the README and of the documentation runs, and prints what stands below it.

The Python blocks of one document are one session, run from top to bottom in an empty folder. A
``text`` block right after a Python block is what that block prints; ``...`` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The array face's page has stand-ins for what its examples import, and a test of its own.
ELSEWHERE = {ROOT / "docs" / "array-face.md"}
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path not in ELSEWHERE
]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(document: str) -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / document).read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)])
def test_document_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text(encoding="utf-8")
    session: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document):
        line = text[: block.start("code")].count("\n")
        # The empty lines make a traceback name the line of the document.
        code = compile("\n" * line + block["code"], ROOT / document, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, session)
        wanted = block["output"]
        if wanted is not None:
            same = doctest.OutputChecker().check_output(wanted, printed.getvalue(), OPTIONS)
            assert same, f"{document}:{line + 1} prints\n{printed.getvalue()}\nexpected\n{wanted}"


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]  # Sphinx checks the links of docs/


@pytest.mark.parametrize("document", OUTSIDE)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert [link for link in LINK.findall(text) if not (ROOT / link).exists()] == []
