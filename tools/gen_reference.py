"""Writes `docs/reference/modelled-matches.md` from what the packet walker knows: `python tools/gen_reference.py`.

With `--check` it writes nothing and ends with 1 where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "modelled-matches.md"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ktp.dataplane.matches import supported_matches  # noqa: E402
from ktp.dataplane.xtables import supported_targets  # noqa: E402

_LEVELS = {
    "exact": "exact",
    "assumed": "exact if assumed",
    "unknown": "unknown",
}
_HEAD = """\
# Modelled matches and targets

What `ktp` knows of the conditions and actions of iptables rules, of both back ends and both address families. This page
is made from the code (`tools/gen_reference.py`); a test fails where it is stale.

- **exact**: as the kernel does it. Random rules were loaded into kernels with random packets, and what became of the
  packets, which rules had counted them and what the far end saw was compared (`tests/kernel/`).
- **exact if assumed**: as the kernel does it, given something that no dump tells. The answer says what it assumed.
- **unknown**: neither true nor false. Both ways are followed: where they end alike the answer stands, where they differ
  it is `undetermined` and names the rule.

A match or target that is not listed, and a rule that cannot be parsed, are unknown too. None is passed over.

nftables rules are held to the kernel in the same way: random rulesets of its families, chain types, sets and maps, and
of the shapes that kube-proxy, firewalld, Docker, and Calico make. There the way itself is compared: chain by chain and
rule by rule, with what the kernel's trace (`nft monitor trace`) says of each packet. Not modelled, and unknown where
they decide, are `queue`, `synproxy`, a `tproxy` that finds its proxy, the options of sockets, link-layer headers, and
tables of family bridge.
"""


def render() -> str:
    """The page."""
    matches = [(f"`{m.name}`", m.level, m.note) for m in supported_matches()]
    targets = [
        (f"`{name}`" if name.isupper() else name, level, note) for name, level, note in supported_targets()
    ]
    parts = [
        _HEAD,
        "## Matches",
        "",
        *_table("match", matches),
        "",
        "## Targets",
        "",
        *_table("target", targets),
        "",
    ]
    return "\n".join(parts)


def _table(kind: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    out = [f"| {kind} | how well | note |", "|---|---|---|"]
    out += [f"| {name} | {_LEVELS[level]} | {note} |".replace("|  |", "| |") for name, level, note in rows]
    return out


def main() -> int:
    """Write the page, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 where the page is stale"
    )
    page = render()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
