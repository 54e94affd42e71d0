"""The Services that clients outside can dial, and their endpoints, kept up to date by watches: one list at the start.

As client-go's reflector does: list, then watch from the list's version on, go on from the last event or bookmark where
a watch ends, and list again only where the server has forgotten that version (410). A server that is away is asked
again, less and less often, up to half a minute.
"""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ktp.collect.cluster import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    NODES,
    SERVICES,
    joined,
    kube_proxy_config,
    node_object,
    version,
)
from ktp.collect.kube_api import ExpiredError, ObjectList
from ktp.errors import ApiError, ApiNotFoundError
from ktp.model.capture import PARTIAL, MemoryCapture

if TYPE_CHECKING:
    from ktp.collect.cluster import Part
    from ktp.collect.kube_api import KubeApi, WatchEvent

# The server ends a watch after so long, and ktp begins the next where it ended: not all nodes at once.
WATCH_SECONDS = (120, 240)
_FIRST_WAIT, _MOST_WAIT = 1.0, 30.0
# How long what changes seldom is believed: this Node, kube-proxy's configuration, the server's version.
_SELDOM = 600.0
_SOON = 60.0  # where some of it could not be read
_SERVICE_NAME = "kubernetes.io/service-name"

# What becomes of an object: the Service ("NAMESPACE/NAME") that it belongs to, None for an object of no interest.
_Owner = Callable[[dict[str, Any]], "str | None"]


class Mirror:
    """A copy of one collection of the API. Objects are kept as packed text: 100,000 endpoints are 4 MB so.

    `heard` is when the server last said something of it (monotonic clock), `problem` why it says nothing now.
    """

    def __init__(self, api: KubeApi, path: str, kind: str, api_version: str, owner: _Owner) -> None:
        """`kind` and `api_version` are those of one object, `owner` says whose it is."""
        self.path = path
        self.heard = 0.0
        self.problem: ApiError | None = None
        self.revision = 0
        self.lists = 0
        self._api = api
        self._identity = {"apiVersion": api_version, "kind": kind}
        self._owner = owner
        self._lock = threading.Lock()
        self._items: dict[str, bytes] = {}
        self._by_owner: dict[str, set[str]] = {}
        self._owner_of: dict[str, str] = {}
        self._version = ""

    def read_whole(self) -> None:
        """Read the whole collection. Raises as KubeApi.list_pages."""
        owners: dict[str, str] = {}

        def pack(key: str, found: dict[str, Any], item: bytes) -> bytes | None:
            owner = self._owner(found)
            if owner is None:
                return None
            owners[key] = owner
            return zlib.compress(item, 1)

        read = self._api.list_pages(self.path, pack=pack)
        with self._lock:
            self._items = dict(zip(read.keys, read.items, strict=True))
            # A list that was begun again has packed objects that are gone since.
            self._owner_of = {key: owners[key] for key in read.keys}
            self._by_owner = {}
            for key, owner in self._owner_of.items():
                self._by_owner.setdefault(owner, set()).add(key)
            self._version = read.resource_version
            self.revision += 1
            self.lists += 1
        self._heard()

    def follow(self, stop: threading.Event) -> None:
        """Keep the copy up to date until `stop` is set. Never raises: what goes wrong is in `problem`."""
        wait = _FIRST_WAIT
        while not stop.is_set():
            begun = time.monotonic()
            try:
                if not self._version:
                    self.read_whole()
                seconds = random.randint(*WATCH_SECONDS)
                for event in self._api.watch(self.path, self._version, seconds=seconds):
                    if stop.is_set():
                        return
                    self._take(event)
                    self._heard()
                self._heard()
            except ExpiredError:
                self._version = ""
            except ApiError as error:
                self.problem = error
            if time.monotonic() - begun > _MOST_WAIT:
                wait = _FIRST_WAIT
                continue
            stop.wait(wait * random.uniform(0.8, 1.2))
            wait = min(wait * 2, _MOST_WAIT)

    def of(self, owners: Collection[str]) -> ObjectList:
        """The objects of these Services."""
        with self._lock:
            keys = sorted(key for owner in owners for key in self._by_owner.get(owner, ()))
            packed = [self._items[key] for key in keys]
        return ObjectList(
            keys=tuple(keys), items=tuple(self._complete(zlib.decompress(each)) for each in packed)
        )

    def owners(self) -> list[str]:
        """Every Service that has an object here."""
        with self._lock:
            return sorted(self._by_owner)

    def owners_of(self, texts: Collection[bytes]) -> set[str]:
        """The Services of the objects in whose text one of `texts` occurs."""
        with self._lock:
            packed = list(self._items.items())
        found = {
            key for key, each in packed for text in (zlib.decompress(each),) if any(t in text for t in texts)
        }
        with self._lock:
            return {self._owner_of[key] for key in found if key in self._owner_of}

    def _heard(self) -> None:
        self.heard = time.monotonic()
        self.problem = None

    def _take(self, event: WatchEvent) -> None:
        key = event.key
        with self._lock:
            if event.resource_version:
                self._version = event.resource_version
            if event.type == "BOOKMARK":
                return
            owner = None if event.type == "DELETED" else self._owner(event.object)
            known = self._owner_of.pop(key, None)
            if known is not None:
                self._items.pop(key, None)
                self._by_owner[known].discard(key)
                if not self._by_owner[known]:
                    del self._by_owner[known]
            if owner is not None:
                self._items[key] = zlib.compress(event.line, 1)
                self._owner_of[key] = owner
                self._by_owner.setdefault(owner, set()).add(key)
            if owner is not None or known is not None:
                self.revision += 1

    def _complete(self, text: bytes) -> bytes:
        """An object as `kubectl get` prints it, from an item of a list or from the line of an event."""
        found = json.loads(text)
        if "object" in found:
            found = found["object"]
        (found.get("metadata") or {}).pop("managedFields", None)
        return json.dumps({**self._identity, **found}, ensure_ascii=False, separators=(",", ":")).encode()


class ClusterWatch:
    """What the API says to one node: external Services, their endpoints, this Node, kube-proxy's configuration."""

    def __init__(self, api: KubeApi, node: str) -> None:
        """Nothing is asked yet."""
        self._api = api
        self._node = node
        self._services = Mirror(api, "/api/v1/services", "Service", "v1", _of_service)
        slices = "/apis/discovery.k8s.io/v1/endpointslices"
        self._endpoints = Mirror(api, slices, "EndpointSlice", "discovery.k8s.io/v1", _of_slice)
        self._endpoints_file = ENDPOINT_SLICES
        self._seldom: list[Part] = []
        self._seldom_due = 0.0
        self._seldom_revision = 0
        self._stop = threading.Event()

    def start(self, *, watch: bool) -> None:
        """List everything once, and with `watch` follow it from then on. Raises ApiError where it cannot be listed."""
        self._services.read_whole()
        try:
            self._endpoints.read_whole()
        except ApiNotFoundError:
            # A server before 1.21 has no discovery.k8s.io/v1; its Endpoints say the same.
            self._endpoints = Mirror(self._api, "/api/v1/endpoints", "Endpoints", "v1", _of_its_name)
            self._endpoints_file = ENDPOINTS
            self._endpoints.read_whole()
        if watch:
            for mirror in (self._services, self._endpoints):
                threading.Thread(target=mirror.follow, args=(self._stop,), daemon=True).start()

    def stop(self) -> None:
        """End the watches."""
        self._stop.set()

    @property
    def revision(self) -> tuple[int, int, int]:
        """Another one after every change."""
        return self._services.revision, self._endpoints.revision, self._seldom_revision

    @property
    def heard(self) -> float:
        """When the API server was last heard of, of what it has said least of (monotonic clock)."""
        return min(self._services.heard, self._endpoints.heard)

    @property
    def problem(self) -> ApiError | None:
        """Why the API server is not heard of now."""
        return self._services.problem or self._endpoints.problem

    @property
    def lists(self) -> int:
        """How many whole lists were read."""
        return self._services.lists + self._endpoints.lists

    def refresh(self) -> None:
        """Read again what changes seldom, where it is old. Raises nothing: what cannot be read is a gap."""
        if time.monotonic() < self._seldom_due:
            return
        seldom = [node_object(self._api, self._node), version(self._api), kube_proxy_config(self._api)]
        lacks = any(part.gaps for part in seldom)
        if not self._seldom or not lacks:
            self._seldom_revision += self._seldom != seldom
            self._seldom = seldom
        self._seldom_due = time.monotonic() + (_SOON if lacks else _SELDOM)

    def capture(self, strangers: Collection[str] = ()) -> MemoryCapture:
        """The objects as files of a snapshot: external Services and their endpoints.

        `strangers` are addresses to which rules lead and that are no endpoint of these: with them, the endpoints that
        have them are there too, and then the endpoints count as whole, since whoever is asked about is among them.
        """
        owners = self._services.owners()
        also = self._endpoints.owners_of([f'"{ip}"'.encode() for ip in strangers]) if strangers else set()
        mirrored = {
            SERVICES: self._services.of(owners),
            self._endpoints_file: self._endpoints.of([*owners, *(also - set(owners))]),
        }
        lists, files, gaps, config = joined(mirrored, self._seldom)
        some = {SERVICES, NODES} & lists.keys() | (set() if strangers else {self._endpoints_file})
        files[PARTIAL] = json.dumps(dict.fromkeys(sorted(some), "some")).encode()
        if config is not None:
            files[f"nodes/{self._node}/kube-proxy-config.yaml"] = config
        return MemoryCapture(files=files, gaps=tuple(gaps), source=self._api.source)


def may_be_dialled(service: dict[str, Any]) -> bool:
    """Whether clients outside may dial the Service."""
    spec, status = service.get("spec") or {}, service.get("status") or {}
    return bool(
        spec.get("type") in ("NodePort", "LoadBalancer")
        or spec.get("externalIPs")
        or (status.get("loadBalancer") or {}).get("ingress")
    )


def _of_service(service: dict[str, Any]) -> str | None:
    """Its own name, where clients outside may dial it."""
    return _of_its_name(service) if may_be_dialled(service) else None


def _of_slice(part: dict[str, Any]) -> str | None:
    metadata = part.get("metadata") or {}
    name = (metadata.get("labels") or {}).get(_SERVICE_NAME)
    return f"{metadata.get('namespace', '')}/{name}" if name else None


def _of_its_name(found: dict[str, Any]) -> str:
    metadata = found.get("metadata") or {}
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
