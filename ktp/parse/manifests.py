"""Kubernetes objects as people keep and post them → the lists of a snapshot.

YAML or JSON, one object, a List, several documents, kinds mixed, in a pasted message: `kubectl get … -o yaml`. A List
is taken to hold all of its kind, as kubectl gives it; objects that stand alone are some of theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.capture import PARTIAL, Capture, MemoryCapture
from ktp.parse.announcing import FILES as ANNOUNCING
from ktp.parse.kubernetes import ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES, VERSION
from ktp.parse.policy import POLICIES
from ktp.parse.text import SHAPE_ERRORS, UTF16_MARKS, decode_text

_FILES = {
    "Service": SERVICES,
    "EndpointSlice": ENDPOINT_SLICES,
    "Endpoints": ENDPOINTS,
    "Pod": PODS,
    "Node": NODES,
    "NetworkPolicy": POLICIES,
    **{resource.kind: file for file, resource in ANNOUNCING.items()},
}
_CANONICAL = frozenset((*_FILES.values(), VERSION, PARTIAL))
_ENDINGS = (".json", ".yaml", ".yml", ".txt")
# The heads of the tables that `kubectl get` prints for people.
_TABLE = re.compile(r"(?:NAMESPACE +)?(?:NAME +[A-Z]|LAST SEEN +)")
_RULES = re.compile(
    r"\*(?:nat|filter|mangle|raw|security)$|(?:\[\d+:\d+\] )?-[AP] [A-Z]|table (?:ip6?|inet) "
)
_KUBECTL = re.compile(r"\s*(?:\S*[#$%]\s*)?(?:sudo\s+)?(?:kubectl|oc|k3s|microk8s)\s.*$")
_HINT = "print the objects whole: `kubectl get services,endpointslices,pods,nodes -A -o yaml`"


def with_lists(capture: Capture) -> Capture:
    """`capture` with a List in each `cluster/….json`, also where its objects came as YAML or under another name.

    Raises EvidenceError, naming the file, for what are no Kubernetes objects, and where there is no Service among them.
    """
    loose = [name for name in capture.names() if name.startswith("cluster/") and _is_loose(capture, name)]
    if not loose:
        return capture
    found: dict[str, list[dict[str, Any]]] = {}
    partial: set[str] = set()
    for name in loose:
        for item, is_listed in _objects(capture.read(name), name):
            file = _FILES.get(str(item.get("kind")))
            if file is None:
                continue
            found.setdefault(file, []).append(item)
            if not is_listed:
                partial.add(file)
    kept = {name: capture.read(name) for name in capture.names() if name not in loose}
    partial -= {file for file in found if file in kept}
    lists = {
        file: json.dumps({"kind": "List", "items": items}, default=str).encode()
        for file, items in found.items()
        if file not in kept
    }
    if SERVICES not in {*kept, *lists}:
        kinds = sorted({str(item.get("kind")) for items in found.values() for item in items}) or [
            "no objects"
        ]
        raise EvidenceError(f"{capture.source} has no Service in it: it holds {', '.join(kinds)}", hint=_HINT)
    if partial:
        kept[PARTIAL] = json.dumps(dict.fromkeys(sorted(partial), "some")).encode()
    return MemoryCapture(files={**kept, **lists}, gaps=capture.gaps, source=capture.source)


def gathered(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, int], list[str]]:
    """The lists of a snapshot from many files of objects, as collectors leave them: one a namespace, or one an object.

    Returns them with `PARTIAL`, how many objects of each kind they hold, and the names of files that were of no use.
    Of a kind that came as one List, all of it is there; of one that came as several, all of the namespaces'; of one of
    which some objects came alone, some are.
    """
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    lists: dict[str, set[str]] = {}
    listed: dict[str, set[tuple[str, str]]] = {}
    useless: list[str] = []
    for name, data in files.items():
        try:
            items = [
                (item, is_listed) for item, is_listed in _objects(data, name) if item.get("kind") in _FILES
            ]
        except EvidenceError:
            items = []
        if not items:
            useless.append(name)
        for item, is_listed in items:
            metadata = item.get("metadata")
            if not isinstance(metadata, dict):
                continue
            file = _FILES[str(item["kind"])]
            key = (str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))
            found.setdefault(file, {}).setdefault(key, item)
            if is_listed:
                lists.setdefault(file, set()).add(name)
                listed.setdefault(file, set()).add(key)
    out = {
        file: json.dumps({"kind": "List", "items": list(items.values())}, default=str).encode()
        for file, items in found.items()
    }
    partial = {
        file: "some" if set(items) - listed.get(file, set()) else "namespace"
        for file, items in found.items()
        if len(lists.get(file, ())) != 1 or set(items) - listed.get(file, set())
    }
    if partial:
        out[PARTIAL] = json.dumps(dict(sorted(partial.items()))).encode()
    kinds = {kind: len(found[file]) for kind, file in _FILES.items() if file in found}
    return out, kinds, useless


def _is_loose(capture: Capture, name: str) -> bool:
    """Whether a file holds objects in a form that the parser of lists does not read."""
    if name not in _CANONICAL:
        return name.endswith(_ENDINGS)
    path = capture.path(name)
    if path is not None:
        with path.open("rb") as stream:
            start = stream.read(4096)
    else:
        start = capture.read(name)[:4096]
    if start.startswith((*UTF16_MARKS, b"\0")) or not start.strip():
        return False
    return not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _objects(data: bytes, name: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every object of a text, and whether it was in a List."""
    for document in _documents(data, name):
        if not isinstance(document, dict):
            raise EvidenceError(f"{name} holds no Kubernetes objects", hint=_HINT)
        if "items" in document and isinstance(document["items"] or [], list):
            kind = str(document.get("kind") or "List").removesuffix("List")
            for item in document["items"] or []:
                if not isinstance(item, dict):
                    raise EvidenceError(f"the items of {name} are not Kubernetes objects", hint=_HINT)
                yield ({"kind": kind, **item} if kind else item), True
        elif document.get("kind") == "Status":
            words = f"{name} holds an error of the API server: {document.get('message')}"
            raise EvidenceError(words, hint=_HINT)
        elif "kind" in document:
            yield document, False
        else:
            raise EvidenceError(f"{name} holds no Kubernetes objects", hint=_HINT)


def _documents(data: bytes, name: str) -> list[Any]:
    """The documents of a text: JSON, one behind another, or YAML."""
    text = decode_text(data, name)
    try:
        return list(_json_documents(text))
    except ValueError:
        pass
    from ktp.parse.posted import undressed_text

    lines = undressed_text(text.encode()).decode().splitlines()
    lines = [line for line in lines if not _KUBECTL.match(line)]
    if any(_RULES.match(line) for line in lines):
        hint = f"explain such rules by `ktp explain-rules --node-port PORT --rules FILE`, or {_HINT}"
        raise EvidenceError(f"{name} holds packet filter rules and no Kubernetes objects", hint=hint)
    if any(_TABLE.match(line) for line in lines):
        raise EvidenceError(
            f"{name} is a table that kubectl prints for people; it says too little "
            "(no policy, no selector, no conditions)",
            hint=_HINT,
        )
    return _yaml_documents("\n".join(lines) + "\n", name)


def _json_documents(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        document, at = decoder.raw_decode(text, at)
        yield document


def _yaml_documents(text: str, name: str) -> list[Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents: Iterable[Any] = yaml.load_all(text, loader)
        return [document for document in documents if document is not None]
    except (yaml.YAMLError, *SHAPE_ERRORS) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())[:100]
        raise EvidenceError(f"{name} is neither JSON nor YAML ({place}{problem})", hint=_HINT) from None
