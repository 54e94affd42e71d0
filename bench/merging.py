#!/usr/bin/env python3
"""How long the reports of a fleet take to be put together: `bench/merging.py [--nodes N] [--items N]`.

Each node's report has so many front ends that are not well, of 10,000; a twentieth of the nodes is worse.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ktp.diagnose.fleet import merge_reports
from ktp.parse.node_reports import parse_node_report
from ktp.render.fleet import print_fleet
from ktp.render.terminal import make_console


def report(node: int, items: int) -> bytes:
    """What the pod of a node serves."""
    count = items * 10 if node % 20 == 0 else items
    found: dict[str, Any] = {
        "apiVersion": "ktp.dev/v1", "kind": "NodeCheck", "node": f"node-{node:04}", "at": 1.0, "objectsAt": 1.0,
        "age": 30.0,
        "frontends": {"fails": count, "answers": 10_000 - count},
        "items": [
            {
                "service": {"namespace": f"team-{n % 100}", "name": f"app-{n}", "externalTrafficPolicy": "Cluster"},
                "frontend": f"nodePort {30000 + n}/TCP", "state": "fails", "symptom": "times_out",
                "intended": "connects", "reason": "policy DROP of filter FORWARD", "cause": "KTP302",
            }
            for n in range(count)
        ],
        "findings": [{"service": f"team-{n}/app-{n}", "code": "KTP302", "message": "m"} for n in range(3)],
    }  # fmt: skip
    return json.dumps(found).encode()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=10)
    arguments = parser.parse_args()
    texts = [report(node, arguments.items) for node in range(arguments.nodes)]
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    fleet = merge_reports((parse_node_report(json.loads(text), "it") for text in texts), [])
    merged = time.process_time() - begun
    print_fleet(fleet, make_console("never", io.StringIO()))
    whole = time.process_time() - begun
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{arguments.nodes} reports ({sum(map(len, texts)) >> 20} MB) of {len(fleet.rows)} front ends: merged in "
        f"{merged:.2f} s of CPU, with the report {whole:.2f} s; {(after - before) >> 10} MB more, {after >> 10} MB\n"
    )


if __name__ == "__main__":
    main()
