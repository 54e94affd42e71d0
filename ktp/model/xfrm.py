"""IPsec as the kernel has it (`ip xfrm policy`, `ip xfrm state`): which packets it protects, and with what."""

from __future__ import annotations

from ktp.model.record import dataclass
from ktp.model.tunnel import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which packets: of these networks; `protocol` is a name or number, None any. `rest`: it asks for more."""

    src: IPNetwork
    dst: IPNetwork
    protocol: str | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a policy wants done: addresses of the outer packet, `protocol` esp, ah, comp, `mode` tunnel, transport …"""

    src: IPAddress | None
    dst: IPAddress | None
    protocol: str = "esp"
    spi: int = 0  # 0: any
    reqid: int = 0
    mode: str = "transport"
    is_optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done with packets in one direction ("out", "in", "fwd"); the smallest `priority` decides.

    `mark` is (value, mask) of the packet's mark. `interface` is the id of the xfrm interface that it is for, 0: none.
    """

    selector: Selector
    direction: str
    blocks: bool = False
    priority: int = 0
    mark: tuple[int, int] = (0, 0)
    interface: int = 0
    templates: tuple[Template, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityState:
    """A security association: how packets from `src` to `dst` with this SPI are protected. Its keys are never read.

    `ports` are those of UDP, from and to, where its packets are wrapped in that (NAT traversal).
    """

    src: IPAddress
    dst: IPAddress
    spi: int
    protocol: str = "esp"
    reqid: int = 0
    mode: str = "transport"
    mark: tuple[int, int] = (0, 0)
    output_mark: int | None = None
    interface: int = 0
    ports: tuple[int, int] | None = None
    selector: Selector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Xfrm:
    """IPsec of a node; `states` None where they were not read."""

    policies: tuple[Policy, ...] = ()
    states: tuple[SecurityState, ...] | None = None
