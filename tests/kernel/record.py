"""Keep what the kernel did to named cases: `python tests/kernel/record.py [--all | NAME…]`, as root.

Writes `tests/unit/dataplane/recorded.json`: the laboratory's files as ktp's collector read them, for each case those
that differ, and what came of each packet. The model is held to it where there is no kernel to ask. Without a name it
asks of the cases that are not recorded yet; what is recorded of the others stays as it is.
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
_TIMER = re.compile(r'(?<=_timer":)[\d.]+')
# What iptables-nft-save says better, and what the kernel learns and forgets as packets come by.
_NOT_KEPT = ("nft-ruleset.json", "nft-hooks.txt", "ip-neigh.json", "bridge-fdb.json")


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
        if not name.endswith(_NOT_KEPT):
            out[name] = _TIMER.sub("0", text) if name.endswith("ip-link.json") else text
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
        {"kernel": each.kernel, "moved": [[*key, n] for key, n in sorted(each.moved.items())]}
        for each in outcomes
    ]
    return {"files": files, "outcomes": told}


def main(words: list[str]) -> None:
    """Record the cases named, or those that are not recorded yet, or all of them and the laboratory."""
    recorded = {} if words == ["--all"] or not RECORDED.exists() else read_recorded()
    known = recorded.get("cases", {})
    wanted = [named for named in ALL if named.name in words or named.name not in known]
    unknown = set(words) - {"--all"} - {named.name for named in ALL}
    if unknown:
        raise SystemExit(f"no case of tests/kernel/cases.py: {', '.join(sorted(unknown))}")
    lab = Lab()
    try:
        for node in ("a", "b"):
            lab.clear(node)
        base = _texts(lab.capture())
        told = {**known, **{named.name: _record(lab, named, base) for named in wanted}}
    finally:
        lab.close()
    cases = {named.name: told[named.name] for named in ALL}
    recorded = {"base": recorded.get("base", base), "cases": cases}
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
