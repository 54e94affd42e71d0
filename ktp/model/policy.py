"""NetworkPolicies (networking.k8s.io/v1), as far as they let packets in to pods."""

from __future__ import annotations

from collections.abc import Mapping

from ktp.model.host import IPAddress, IPNetwork
from ktp.model.record import dataclass
from ktp.model.selector import LabelSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An ipBlock: the addresses of `cidr` without those of `excepts`."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    def holds(self, ip: IPAddress) -> bool:
        """Whether the address is in the block."""
        return (
            ip.version == self.cidr.version
            and ip in self.cidr
            and not any(ip in each for each in self.excepts)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPort:
    """A port of a rule: `port` is a number, a container port's name, or None for all; `end` closes a range."""

    protocol: str = "TCP"
    port: int | str | None = None
    end: int | None = None

    def is_met(self, protocol: str, number: int, names: Mapping[str, int]) -> bool:
        """Whether packets to a pod's port `number` meet it; `names` are the pod's ports by name."""
        if protocol != self.protocol:
            return False
        if self.port is None:
            return True
        first = names.get(self.port) if isinstance(self.port, str) else self.port
        return first is not None and first <= number <= (self.end or first)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressRule:
    """Who may send to which ports: without `ports` to all, and with `is_open` from everywhere.

    Of those who may, `blocks` are those by address; `has_pods` tells that pods by labels are among them, too.
    """

    ports: tuple[PolicyPort, ...] = ()
    blocks: tuple[Block, ...] = ()
    has_pods: bool = False

    @property
    def is_open(self) -> bool:
        """Whether `from` is empty: anybody may."""
        return not self.blocks and not self.has_pods

    def is_for(self, protocol: str, number: int, names: Mapping[str, int]) -> bool:
        """Whether the rule is about a pod's port."""
        return not self.ports or any(port.is_met(protocol, number, names) for port in self.ports)

    def admits(self, ip: IPAddress) -> bool:
        """Whether a client that is no pod may, by its address."""
        return self.is_open or any(block.holds(ip) for block in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """A policy; `isolates` tells that it is about ingress at all (policyTypes)."""

    namespace: str
    name: str
    pods: LabelSelector
    isolates: bool = True
    rules: tuple[IngressRule, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"
