#!/usr/bin/env python3
"""Writes `docs/reference/findings/`, a page for each code, `evidence.md` and the copy of the JSON Schema.

The pages are the docstrings of the checks. `tools/gen_pages.py` writes, `tools/gen_pages.py --check` says what is stale
(exit status 1). New codes are entered in `tests/data/codes.txt`, the list of every code ever given, so that no number
gets a second meaning.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "docs" / "reference" / "findings"
EVER_GIVEN = REPOSITORY / "tests" / "data" / "codes.txt"

sys.path.insert(0, str(REPOSITORY))

from evidence_page import evidence_markdown  # noqa: E402

from ktp.diagnose.codes import index_markdown, page_markdown, pages  # noqa: E402


def wanted() -> dict[Path, str]:
    """What the files should hold."""
    ever = dict(line.split() for line in EVER_GIVEN.read_text().splitlines()) if EVER_GIVEN.exists() else {}
    for page in pages():
        if ever.setdefault(page.code, page.name) != page.name:
            raise SystemExit(
                f"{page.code} was {ever[page.code]}: take another number than that of {page.name}"
            )
    files = {PAGES / f"{page.code}.md": page_markdown(page) for page in pages()}
    files[PAGES / "README.md"] = index_markdown()
    files[PAGES.parent / "evidence.md"] = evidence_markdown()
    files[PAGES.parent / "ktp.dev-v1.schema.json"] = (REPOSITORY / "ktp/schema/v1.json").read_text()
    files[EVER_GIVEN] = "".join(f"{code} {name}\n" for code, name in sorted(ever.items()))
    return files


def main(arguments: list[str]) -> int:
    """Write the files, or name those that are stale."""
    files = wanted()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    left = [path for path in PAGES.glob("*.md") if path not in files]
    if arguments == ["--check"]:
        for path in sorted([*stale, *left]):
            print(f"stale: {path.relative_to(REPOSITORY)}", file=sys.stderr)  # noqa: T201
        return 1 if stale or left else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(files[path])
    for path in left:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
