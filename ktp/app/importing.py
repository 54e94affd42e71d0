"""`ktp snapshot import`: a snapshot from what people have already; nothing is asked, and nothing invented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ktp.app.snapshot import Taken, redacted_capture, taken
from ktp.errors import EvidenceError
from ktp.model.cluster import Node
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was written, from what: objects by kind, nodes' files by source, and what was of no use."""

    written: Taken
    objects: dict[str, int]
    from_nodes: dict[str, str]
    homeless: tuple[str, ...]
    unused: int


def import_evidence(sources: tuple[str, ...], out: str, *, redact: bool, redact_map: str | None) -> Imported:
    """Write what the sources hold as a snapshot. Raises EvidenceError where nothing in them is evidence."""
    from ktp.collect.importing import place, read_files, sort_out
    from ktp.collect.snapshot import write_snapshot
    from ktp.collect.strip import strip_capture
    from ktp.model.capture import Capture, MemoryCapture
    from ktp.parse.kubernetes import NODES, SERVICES, parse_nodes
    from ktp.parse.manifests import gathered
    from ktp.parse.posted import dump_of_listing
    from ktp.parse.printed import printed_for_people

    files = read_files(Path(source) for source in sources)
    found = sort_out(files)
    lists, kinds, useless = gathered(found.objects)
    for name in useless:
        del found.objects[name]
    nodes = parse_nodes(lists[NODES]) if NODES in lists else {}
    place(found, files, list(nodes), _other_names(nodes), printed_for_people, dump_of_listing)
    if SERVICES not in lists:
        kept = (
            f"objects of other kinds ({', '.join(kinds)})"
            if kinds
            else f"files without objects ({len(files)})"
        )
        raise EvidenceError(
            f"there is no Service in {', '.join(sources)}, only {kept}",
            hint="add the objects: kubectl get services,endpointslices,pods,nodes -A -o yaml > objects.yaml",
        )
    capture: Capture = strip_capture(
        MemoryCapture(files={**lists, **found.nodes}, gaps=tuple(found.gaps), source=", ".join(sources))
    )
    if redact:
        capture = redacted_capture(capture, redact_map)
    write_snapshot(capture, out)
    return Imported(
        written=taken(out, capture, redacted=redact),
        objects=kinds,
        from_nodes=found.taken,
        homeless=tuple(found.homeless),
        unused=len(found.unused),
    )


def _other_names(nodes: Mapping[str, Node]) -> dict[str, str]:
    """What collectors call a node by beside its name: a cloud's instance id (EKS), its host name."""
    found: dict[str, str] = {}
    for name, node in nodes.items():
        texts = [(node.provider_id or "").rpartition("/")[2]]
        texts += [*node.addresses_of("Hostname"), *node.addresses_of("InternalDNS")]
        found |= {text: name for text in texts if len(text) > 3}
    return found
