#!/usr/bin/env python3
"""Makes the packaged snapshot, ktp/demo/article, of a recorded cluster: `tools/make_demo.py CASE [OUT]`.

Only one namespace is kept: its objects, its rules and the chains that every cluster has. Rules stay byte for byte as
they were recorded, counters included, and the dump can still be loaded with `iptables-restore`. Addresses, routes
and sysctls are copied as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

NAMESPACE = "test"
NAMESPACED = ("services", "endpointslices", "endpoints", "pods")
COPIED = ("ip-addr.json", "ip-route.json", "ip-rule.json", "ip6-route.json", "ip6-rule.json", "sysctl.txt")
CONFIGURATIONS = ("kube-proxy-config.json", "kube-proxy-config.yaml")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# A Service as kube-proxy names it in comments: "test/nginx-log:80-80-tcp cluster IP", "… traffic for test/web LB IP".
_SERVICE = re.compile(r'--comment "?(?:[^"]*? )?([a-z0-9-]+)/[a-z0-9-]+(?::[a-z0-9-]*)?[ "]')
_RULE = re.compile(r"(?:\[\d+:\d+\] )?-A (\S+) ")
_JUMP = re.compile(r" -[jg] (\S+)")
_OF_A_SERVICE = re.compile(r"KUBE-(?:SVC|SVL|SEP|EXT|XLB|FW)-[A-Z2-7]{16}")
_CHAIN = re.compile(r":(\S+) ")


def main() -> int:
    """Make the snapshot; 2 where the case is none."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", type=Path, help="the folder of a recorded cluster")
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path(__file__).parent.parent / "ktp" / "demo" / "article"
    )
    arguments = parser.parse_args()
    if not (arguments.case / "cluster" / "services.json").is_file():
        sys.stderr.write(f"{arguments.case} is not a snapshot\n")
        return 2
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    make_demo(arguments.case, arguments.out)
    return 0


def make_demo(case: Path, out: Path) -> None:
    """Write the reduced copy of `case` to `out`."""
    (out / "cluster").mkdir(parents=True)
    objects = {kind: _items(case, kind) for kind in (*NAMESPACED, "nodes")}
    for kind, items in objects.items():
        kept = [item for item in items if kind == "nodes" or item["metadata"]["namespace"] == NAMESPACE]
        _write_list(out / "cluster" / f"{kind}.json", [_without_noise(item) for item in kept])
    shutil.copyfile(case / "cluster" / "version.json", out / "cluster" / "version.json")
    dropped = _node_ports(item for item in objects["services"] if item["metadata"]["namespace"] != NAMESPACE)
    for node in sorted((case / "nodes").iterdir()):
        _make_node(node, out / "nodes" / node.name, dropped)


def _items(case: Path, kind: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads((case / "cluster" / f"{kind}.json").read_text())["items"]
    return items


def _write_list(path: Path, items: list[dict[str, Any]]) -> None:
    document = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _without_noise(item: dict[str, Any]) -> dict[str, Any]:
    metadata = item["metadata"]
    metadata.pop("managedFields", None)
    (metadata.get("annotations") or {}).pop(LAST_APPLIED, None)
    if not metadata.get("annotations"):
        metadata.pop("annotations", None)
    return item


def _node_ports(services: Any) -> set[str]:
    ports = set()
    for service in services:
        spec = service["spec"]
        ports |= {str(port["nodePort"]) for port in spec["ports"] if port.get("nodePort")}
        if spec.get("healthCheckNodePort"):
            ports.add(str(spec["healthCheckNodePort"]))
    return ports


def _make_node(node: Path, out: Path, dropped: set[str]) -> None:
    out.mkdir(parents=True)
    for file in sorted(node.iterdir()):
        if file.name in (*COPIED, *CONFIGURATIONS):
            shutil.copyfile(file, out / file.name)
        elif file.name.endswith("-save.txt") and "tables" in file.name:
            (out / file.name).write_text(reduce_rules(file.read_text()))
        elif file.name == "ss.txt":
            # Up to 1.26 kube-proxy holds a socket for each node port.
            lines = file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.split()[4].rpartition(":")[2] not in dropped]
            (out / file.name).write_text("".join(kept))
        elif file.name == "nft-ruleset.json" and '"table"' not in file.read_text():
            continue  # the node has no nftables tables at all
        else:
            raise SystemExit(f"{file}: nothing is known about how to reduce it")


def reduce_rules(dump: str) -> str:
    """An `iptables-save` dump without the rules and chains of Services of other namespaces."""
    lines = dump.splitlines(keepends=True)
    owners: dict[str, str] = {}
    for line in lines:
        chain, service = _RULE.match(line), _SERVICE.search(line)
        if chain and service and _OF_A_SERVICE.fullmatch(chain[1]):
            owners[chain[1]] = service[1]
    # A chain that is empty on this node belongs to whoever jumps to it, if anybody does.
    for line in lines:
        jump, service = _JUMP.search(line), _SERVICE.search(line)
        if jump and service and _OF_A_SERVICE.fullmatch(jump[1]):
            owners.setdefault(jump[1], service[1])

    def keep(line: str) -> bool:
        if declared := _CHAIN.match(line):
            return not _OF_A_SERVICE.fullmatch(declared[1]) or owners.get(declared[1]) == NAMESPACE
        if not (rule := _RULE.match(line)):
            return True
        service = _SERVICE.search(line)
        owner = service[1] if service else owners.get(rule[1], NAMESPACE)
        return owner == NAMESPACE

    return "".join(line for line in lines if keep(line))


if __name__ == "__main__":
    sys.exit(main())
