#!/usr/bin/env python3
"""Makes a test's copy of a recorded cluster: `tools/reduce_case.py CASE OUT [--namespace NS] [--service NAME …]`.

Rules, addresses, routes and sysctls stay byte for byte; objects lose what no answer reads; the nft
listing of rules that the iptables dump has already is left out. With --namespace only its objects and the flows to
its Services are kept; with --service only these Services, all pods, and the flows to these Services.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

NAMESPACED = ("services", "endpointslices", "endpoints", "pods")
# Of what a data plane prints, what its reader reads.
PRINTED = ("status.json", "config.txt", "version.txt", "bpf-", "policy-get", "identity-list")
NOT_READ = ("controllers", "bpf-maps", "ipam", "kubernetes", "proxy")
NOISE = ("managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--namespace")
    parser.add_argument("--service", action="append", default=[])
    arguments = parser.parse_args()
    case, out, namespace = arguments.case, arguments.out, arguments.namespace
    if out.exists():
        shutil.rmtree(out)
    (out / "cluster").mkdir(parents=True)
    for name in (n for n in (*NAMESPACED, "nodes") if (case / "cluster" / f"{n}.json").exists()):
        items = json.loads((case / "cluster" / f"{name}.json").read_text())["items"]
        if namespace is not None and name != "nodes":
            items = [i for i in items if i["metadata"]["namespace"] == namespace]
        if arguments.service and name not in ("nodes", "pods"):
            items = [i for i in items if _service_of(i) in arguments.service]
        written = ",\n".join(json.dumps(_without_noise(i), separators=(",", ":")) for i in items)
        (out / "cluster" / f"{name}.json").write_text(
            f'{{"apiVersion":"v1","kind":"List","items":[\n{written}\n]}}\n'
        )
    for name in (n for n in ("cluster/version.json", "case.json") if (case / n).exists()):
        shutil.copyfile(case / name, out / name)
    for node in sorted((case / "nodes").iterdir()):
        (out / "nodes" / node.name).mkdir(parents=True)
        dumped = any("iptables" in file.name for file in node.iterdir())
        for file in sorted(node.iterdir()):
            if file.name == "cilium":
                _copy_printed(file, out / "nodes" / node.name / file.name)
            elif file.is_file() and not (dumped and file.name == "nft-ruleset.json"):
                shutil.copyfile(file, out / "nodes" / node.name / file.name)
    probes = json.loads((case / "probes.json").read_text())
    if namespace is not None:
        probes = [p for p in probes if p["service"].startswith(f"{namespace}/")]
    if arguments.service:
        probes = [p for p in probes if p["service"].partition("/")[2].partition(":")[0] in arguments.service]
    written = ",\n".join(json.dumps(p, separators=(",", ":")) for p in probes)
    (out / "probes.json").write_text(f"[\n{written}\n]\n")


def _service_of(item: dict[str, Any]) -> str:
    """The Service that an object is, or belongs to."""
    meta = item["metadata"]
    return str(meta.get("labels", {}).get("kubernetes.io/service-name", meta["name"]))


def _copy_printed(folder: Path, out: Path) -> None:
    out.mkdir()
    for file in sorted(folder.iterdir()):
        if not file.name.startswith(PRINTED):
            continue
        if file.suffix != ".json":
            shutil.copyfile(file, out / file.name)
            continue
        value = json.loads(file.read_text())
        if file.name == "status.json":
            value = {key: part for key, part in value.items() if key not in NOT_READ}
        (out / file.name).write_text(json.dumps(value, indent=0, separators=(",", ":")) + "\n")


def _without_noise(item: dict[str, Any]) -> dict[str, Any]:
    meta = {key: value for key, value in item["metadata"].items() if key not in NOISE}
    annotations = {k: v for k, v in meta.pop("annotations", {}).items() if k != LAST_APPLIED}
    if annotations:
        meta["annotations"] = annotations
    return {**item, "metadata": meta}


if __name__ == "__main__":
    main()
