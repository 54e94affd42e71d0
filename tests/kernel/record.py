"""Run every named case on the kernel and keep what it did: `python tests/kernel/record.py`, as root.

Writes `tests/unit/dataplane/recorded.json`: the laboratory's files as ktp's collector read them, for each case those
that differ, and what came of each packet. The model is held to it where there is no kernel to ask.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from ktp.model.capture import MemoryCapture
from tests.kernel.cases import ALL, Named
from tests.kernel.compare import RuleKey, load, run_case, unload
from tests.kernel.lab import Lab

RECORDED = Path(__file__).resolve().parents[1] / "unit" / "dataplane" / "recorded.json"
_CHANGING = re.compile(
    r"\[\d+:\d+\] ?(?=-A)| on \w+ \w+ +\d+ [\d:]+ \d{4}$|(?<=\[)\d+:\d+(?=\]$)", re.MULTILINE
)


def read_recorded() -> dict[str, Any]:
    """`base`: file → text; `cases`: name → `files` that differ and `outcomes` of its packets."""
    return dict(json.loads(RECORDED.read_text(encoding="utf-8")))


def capture_of(recorded: dict[str, Any], name: str) -> MemoryCapture:
    """The files of one recorded case."""
    files = {**recorded["base"], **recorded["cases"][name]["files"]}
    for node in {file.split("/")[1] for file in files if file.startswith("nodes/")}:
        files.setdefault(f"nodes/{node}/nft-ruleset.json", '{"nftables": []}')  # read, and not kept (_texts)
    return MemoryCapture(files={k: v.encode() for k, v in files.items()}, source=name)


def moved_of(outcome: dict[str, Any]) -> dict[RuleKey, int]:
    """The counters of a recorded outcome."""
    return {(*key[:4], key[4]): n for *key, n in outcome["moved"]}


def _texts(capture: MemoryCapture) -> dict[str, str]:
    out = {}
    for name, content in capture.files.items():
        text = content.decode()
        if "tables" in name:
            text = _CHANGING.sub(lambda m: "0:0" if m.group()[0].isdigit() else "", text)
        if not name.endswith(("nft-ruleset.json", "nft-hooks.txt")):  # what iptables-nft-save says better
            out[name] = text
    return out


def _alike(one: str, other: str) -> bool:
    """The same text, or lists of the same objects: routes come in no fixed order."""
    if one == other or not one.startswith("["):
        return one == other
    return sorted(map(str, json.loads(one))) == sorted(map(str, json.loads(other)))


def _record(lab: Lab, named: Named, base: dict[str, str]) -> dict[str, Any]:
    outcomes = run_case(lab, named.case, counted=named.counted)
    for each in outcomes:
        if not each.agrees:
            raise SystemExit(f"{named.name}: {each.packet}: {each.why}")
    case = load(lab, named.case)
    files = {k: v for k, v in _texts(lab.capture()).items() if k not in base or not _alike(base[k], v)}
    unload(lab, case)
    told = [
        {
            "kernel": each.kernel,
            "open": each.why == "undetermined",
            "moved": [[*key, n] for key, n in sorted(each.moved.items())],
        }
        for each in outcomes
    ]
    return {"files": files, "outcomes": told}


def main() -> None:
    """Record all cases."""
    lab = Lab()
    try:
        for node in ("a", "b"):
            lab.clear(node)
        base = _texts(lab.capture())
        recorded = {"base": base, "cases": {named.name: _record(lab, named, base) for named in ALL}}
    finally:
        lab.close()
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
