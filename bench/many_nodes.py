#!/usr/bin/env python3
"""Writes a recorded cluster with more nodes: `bench/many_nodes.py OUT NODES`.

The nodes that are added hold no pod. They have the rules that the recorded node-b has, addresses of their own,
and routes to all others.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

CASE = Path(__file__).resolve().parent.parent / "tests" / "data" / "cases" / "core-1.36-iptables-nft"
MODEL = "node-b"
OWN, NETWORK, POD_CIDRS = (
    "10.0.0.10",
    "10.0.0.0/24",
    {"node-a": "10.244.1.0/24", "node-b": "10.244.2.0/24"},
)
GATEWAYS = {"node-a": "10.0.0.3", "node-b": OWN}


def main() -> None:
    """Write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("nodes", type=int)
    arguments = parser.parse_args()
    write(arguments.out, arguments.nodes)


def write(out: Path, nodes: int) -> None:
    """The recording with so many nodes in all at `out`, a folder that is not there yet."""
    shutil.copytree(CASE, out)
    file = out / "cluster" / "nodes.json"
    cluster: dict[str, Any] = json.loads(file.read_text())
    model = next(i for i in cluster["items"] if i["metadata"]["name"] == MODEL)
    ways = [(name, GATEWAYS[name], cidr) for name, cidr in POD_CIDRS.items()]
    for number in range(nodes - len(cluster["items"])):
        name, ip = f"node-{number:04}", f"10.0.{number // 200 + 1}.{number % 200 + 1}"
        pods = f"10.{245 + number // 250}.{number % 250}"
        text = json.dumps(model).replace(MODEL, name).replace(OWN, ip).replace("10.244.2.", f"{pods}.")
        cluster["items"].append(json.loads(text))
        ways.append((name, ip, f"{pods}.0/24"))
        folder = shutil.copytree(CASE / "nodes" / MODEL, out / "nodes" / name)
        for each, changes in {
            "ip-addr.json": ((OWN, ip), ("10.244.2.", f"{pods}.")),
            "ip-route.json": ((OWN, ip), ("10.244.2.", f"{pods}.")),
            "kube-proxy-config.json": ((MODEL, name),),
        }.items():
            changed = (folder / each).read_text()
            for old, new in changes:
                changed = changed.replace(old, new)
            (folder / each).write_text(changed)
    file.write_text(json.dumps(cluster))
    for folder in (out / "nodes").iterdir():
        _widen(folder, ways)


def _widen(folder: Path, ways: list[tuple[str, str, str]]) -> None:
    """One network for all nodes, and a route to the pods of each."""
    routes = json.loads((folder / "ip-route.json").read_text())
    known = {route["dst"] for route in routes}
    routes += [
        {"dst": cidr, "gateway": ip, "dev": "eth0", "flags": []}
        for name, ip, cidr in ways
        if name != folder.name and cidr not in known
    ]
    (folder / "ip-route.json").write_text(json.dumps(routes).replace(NETWORK, "10.0.0.0/16"))
    addresses = folder / "ip-addr.json"
    addresses.write_text(addresses.read_text().replace('"prefixlen":24', '"prefixlen":16'))


if __name__ == "__main__":
    main()
