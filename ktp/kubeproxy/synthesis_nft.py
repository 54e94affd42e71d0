"""nft, to come."""

from __future__ import annotations

from collections.abc import Sequence

from ktp.kubeproxy.endpoints import SliceIndex
from ktp.kubeproxy.node import ProxyNode
from ktp.model.cluster import Service, ServicePort
from ktp.model.host import KubeProxyConfig
from ktp.model.nftables import NftTable


def reprogram_table(
    table: NftTable,
    ports: Sequence[tuple[Service, ServicePort, bool]],
    node: ProxyNode,
    index: SliceIndex,
    *,
    minor: int,
    config: KubeProxyConfig | None,
) -> NftTable:
    """The table, unchanged as yet."""
    return table
