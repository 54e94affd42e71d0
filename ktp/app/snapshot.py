"""`ktp snapshot`: what ktp would read, written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktp.app.evidence import WAYS, did_you_mean, require_nodes, with_nodes
from ktp.app.settings import Settings, offline, open_offline
from ktp.errors import NotFoundError, UsageError
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi
    from ktp.collect.redact import ChainNaming
    from ktp.model.capture import Capture, EvidenceGap


# Nodes that are read before anything is written: what an interrupted run loses at most.
_NODES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What `ktp snapshot` wrote. `nodes_with_rules` counts those whose packet filter rules are in it."""

    path: str
    services: int | None
    nodes: int
    nodes_with_rules: int
    resumed: int
    redacted: bool
    gaps: tuple[EvidenceGap, ...]


def take_snapshot(
    settings: Settings,
    out: str,
    *,
    resume: bool = False,
    redact: bool = False,
    redact_map: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Taken:
    """`ktp snapshot OUT`: collect a cluster, or take over --snapshot, and write it.

    `progress` is told in words what is going on. Raises EvidenceError where nothing could be had.
    """
    from ktp.collect.snapshot import is_archive_name, write_snapshot
    from ktp.collect.strip import strip_capture

    archive = is_archive_name(out)
    if redact_map is not None and not redact:
        raise UsageError("--redact-map says where to keep the pseudonyms of --redact; give both")
    if resume and (archive or redact or offline(settings)):
        what = "an archive" if archive else "a redacted snapshot" if redact else "a copy of a snapshot"
        raise UsageError(
            f"--resume takes up a folder that is read from a live cluster, and not {what}",
            hint="collect into a folder first, then convert it: ktp snapshot --snapshot FOLDER OUT",
        )
    if not offline(settings) and not archive and not redact:
        return _take_into_folder(settings, out, resume=resume, progress=progress)
    if offline(settings):
        capture: Capture = open_offline(settings)
        nodes = settings.nodes or None
        known = set(capture.node_names())
        for name in settings.nodes:
            if name not in known:
                raise NotFoundError(
                    f"there is nothing of a node {name!r} in the snapshot" + did_you_mean(name, known)
                )
        capture = strip_capture(capture, namespace=settings.namespace, nodes=nodes)
    else:
        progress("reading the API server")
        api, cluster = _cluster_capture(settings)
        progress("reading the nodes")
        asked = replace(settings, progress=_counting(progress))
        capture = strip_capture(with_nodes(asked, cluster, api=api, pods="all"), nodes=settings.nodes or None)
    if redact:
        progress("replacing names and addresses")
        capture = redacted_capture(capture, redact_map)
    progress(f"writing {out}")
    write_snapshot(capture, out)
    return taken(out, capture, redacted=redact)


def _cluster_capture(settings: Settings) -> tuple[KubeApi, Capture]:
    from ktp.collect.cluster import collect_services
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    return api, collect_services(api, settings.namespace)


def _counting(
    progress: Callable[[str], None], before: int = 0, total: int = 0
) -> Callable[[int, int, str], None]:
    """What is told of each node that was read, in words for `progress`."""
    return lambda done, asked, node: progress(f"reading nodes: {before + done} of {total or asked} ({node})")


def _take_into_folder(
    settings: Settings, out: str, *, resume: bool, progress: Callable[[str], None]
) -> Taken:
    """Node by node, so that what was read is kept where the run is interrupted."""
    from ktp.collect.snapshot import SnapshotFolder, open_snapshot
    from ktp.collect.strip import strip_capture

    progress("reading the API server")
    api, found = _cluster_capture(settings)
    cluster = strip_capture(found)
    require_nodes(settings, cluster)
    folder = SnapshotFolder(out, resume=resume)
    files = {name: cluster.read(name) for name in cluster.names()}
    folder.write_cluster(files)
    in_cluster = {name.split("/")[1] for name in files if name.startswith("nodes/")} | _node_objects(files)
    wanted = sorted(settings.nodes or in_cluster)
    done = folder.complete_nodes()
    gaps = [*cluster.gaps, *(gap for gap in folder.gaps if gap.subject.partition("/")[0] in done)]
    left = [name for name in wanted if name not in done]
    for name in left:
        folder.write_node(name, files)
    remote = settings.node_access in WAYS
    batches = (
        [left] if not remote else [left[i : i + _NODES_AT_ONCE] for i in range(0, len(left), _NODES_AT_ONCE)]
    )
    for number, batch in enumerate(batches):
        if wanted and not batch:
            continue  # every node is there already
        progress("reading the nodes" if remote else "reading this machine")
        asked = replace(
            settings,
            nodes=tuple(batch) if remote or resume or settings.nodes else (),
            progress=_counting(progress, number * _NODES_AT_ONCE, len(left)),
        )
        read = strip_capture(with_nodes(asked, cluster, api=api, pods="all"))
        new = {name: read.read(name) for name in read.names() if name.startswith("nodes/")}
        # What the API says about all nodes is in each answer; only those of this turn were read.
        for name in batch if remote else read.node_names():
            if name not in done:
                folder.write_node(name, new)
        gaps += [gap for gap in read.gaps if gap not in gaps]
        folder.write_gaps(gaps)
    folder.write_gaps(gaps)
    return taken(out, open_snapshot(out), resumed=len(done.intersection(wanted)))


def _node_objects(files: Mapping[str, bytes]) -> set[str]:
    if "cluster/nodes.json" not in files:
        return set()
    return {item["metadata"]["name"] for item in json.loads(files["cluster/nodes.json"])["items"]}


def taken(out: str, capture: Capture, *, redacted: bool = False, resumed: int = 0) -> Taken:
    """What was written at `out`."""
    nodes = capture.node_names()
    rules = {name.split("/")[1] for name in capture.names() if "tables" in name or "nft-ruleset" in name}
    services = (
        json.loads(capture.read("cluster/services.json"))["items"]
        if capture.has("cluster/services.json")
        else None
    )
    return Taken(
        path=out,
        services=None if services is None else len(services),
        nodes=len(nodes),
        nodes_with_rules=len(rules.intersection(nodes)),
        resumed=resumed,
        redacted=redacted,
        gaps=tuple(capture.gaps),
    )


def redacted_capture(capture: Capture, redact_map: str | None) -> Capture:
    """The capture with pseudonyms; those of an existing `redact_map` are used again."""
    import secrets

    from ktp.collect.redact import redact_capture
    from ktp.collect.snapshot import write_private_file

    known: dict[str, Any] = {}
    if redact_map is not None and Path(redact_map).exists():
        try:
            known = json.loads(Path(redact_map).read_bytes())
            key, names = bytes.fromhex(known["key"]), dict(known["names"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"{redact_map} exists and is not a map that --redact-map wrote", hint="choose another name"
            ) from None
    else:
        key, names = secrets.token_bytes(32), {}
    redaction = redact_capture(capture, chain_naming(), key=key, known=names)
    if redact_map is not None:
        content = json.dumps(redaction.mapping(), indent=1, ensure_ascii=False).encode() + b"\n"
        write_private_file(redact_map, content)
    return redaction.capture


def chain_naming() -> ChainNaming:
    """How kube-proxy names chains, for the redactor: collect knows nothing of kube-proxy."""
    from ktp.collect.redact import ChainNaming
    from ktp.kubeproxy import names

    def nft_service(namespace: str, service: str, protocol: str, port: str) -> str:
        chains = names.nft_service_chains(namespace, service, protocol, port)
        return chains.service.removeprefix(names.NFT_SERVICE_PREFIX)

    def nft_endpoint(namespace: str, service: str, protocol: str, port: str, ip: str, number: int) -> str:
        found = names.nft_endpoint_names(namespace, service, protocol, port, ip, number)
        return found.chain.removeprefix(names.NFT_ENDPOINT_PREFIX)

    return ChainNaming(
        service_suffix=names.service_suffix,
        endpoint_suffix=names.endpoint_suffix,
        nft_service=nft_service,
        nft_endpoint=nft_endpoint,
    )
