"""Which version of kube-proxy a node runs, from the best evidence there is, with words for where it is from.

Only minor versions matter: nothing that `ktp.kubeproxy` states changes within one, save where it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ktp.kubeproxy.names import (
    KUBE_EXTERNAL_SERVICES,
    KUBE_FORWARD,
    KUBE_NODEPORTS,
    NFT_TABLE,
    RuleFamily,
    detect_family,
)
from ktp.model.cluster import Cluster, Pod
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Chain, Match, Rule, Ruleset, recorded_of

if TYPE_CHECKING:
    # A module that takes long to import, for nodes that have such tables.
    from ktp.model.nftables import NftRuleset

Version = tuple[int, int]

OLDEST: Version = (1, 18)  # what the facts of this package reach back to
NEWEST: Version = (1, 36)

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?!\d)")
_TAG = re.compile(r":v?(\d+\.\d+(?:\.\d+)?)(?:[-+_.@]|$)")
_KUBE_PROXY_IMAGE = re.compile(r"(?:^|/)(?:kube-proxy|hyperkube)(?:-\w+)?(?=[:@])")


def parse_version(text: str) -> Version | None:
    """(major, minor) of `v1.30.5+k3s1`, `1.36`, `v1.29.0-eks-1`; None where the text is no version."""
    match = _VERSION.match(text.strip())
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRange:
    """The versions of kube-proxy that a node may run, both ends included, and what says so."""

    low: Version
    high: Version
    source: str

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"empty version range {self.low}..{self.high}")

    @property
    def is_exact(self) -> bool:
        """Whether the evidence leaves a single minor version."""
        return self.low == self.high

    def __str__(self) -> str:
        """`1.30`, or `1.25 to 1.36`."""
        low, high = (f"{major}.{minor}" for major, minor in (self.low, self.high))
        return low if self.is_exact else f"{low} to {high}"

    def minors(self) -> tuple[int, ...]:
        """The minor versions of 1.x in the range, those outside what ktp knows taken as the nearest known one."""
        low, high = (min(max(v, OLDEST), NEWEST)[1] for v in (self.low, self.high))
        return tuple(range(low, high + 1))

    @property
    def is_modelled(self) -> bool:
        """Whether the facts of this package were read from every version of the range."""
        return self.low >= OLDEST and self.high <= NEWEST


ANY_VERSION = VersionRange(low=OLDEST, high=NEWEST, source="nothing tells the version of kube-proxy")


def exact(minor: int, source: str = "given") -> VersionRange:
    """The range of the single version 1.`minor`."""
    return VersionRange(low=(1, minor), high=(1, minor), source=source)


def version_of_image(image: str) -> Version | None:
    """The version in the tag of a kube-proxy image, None for other images and for digests without a tag."""
    if not _KUBE_PROXY_IMAGE.search(image):
        return None
    tag = _TAG.search(image)
    return parse_version(tag[1]) if tag else None


def _pod_versions(pods: Iterable[Pod], node_name: str) -> Iterator[tuple[Version, str]]:
    """(version, words) of each kube-proxy Pod that runs on the node."""
    for pod in pods:
        if pod.node_name != node_name or pod.deletion_timestamp or pod.phase in {"Succeeded", "Failed"}:
            continue
        for image in (*(c.image for c in pod.containers), *pod.images):
            version = version_of_image(image)
            if version is not None:
                yield version, f"image {image} of Pod {pod.key}"
                break


def proxy_version(cluster: Cluster, node_name: str, state: NodeState | None = None) -> VersionRange:
    """The version of kube-proxy on `node_name`.

    Best first: the image of the kube-proxy Pod there; `Node.status.nodeInfo.kubeProxyVersion` (deprecated, empty
    with newer kubelets, and always the kubelet's guess that kube-proxy has its own version); the kubelet's version,
    which most installers share; what the node's rules bound; the API server's version, which kube-proxy's
    must not pass. Rules in the kernel overrule a guess that they contradict.
    """
    found = tuple(_pod_versions(cluster.pods or (), node_name))
    if found:
        versions = [version for version, _ in found]
        return VersionRange(low=min(versions), high=max(versions), source="; ".join(w for _, w in found))
    bounds = _rule_bounds(state)
    guess = _node_guess(cluster, node_name) or _api_guess(cluster)
    if guess is None:
        return _range_of(bounds, ANY_VERSION) or ANY_VERSION
    if guess.is_exact:
        contradicted = next((b for b in bounds if not _allows(b, guess.low)), None)
        if contradicted is None:
            return guess
        rules_only = _range_of(bounds, ANY_VERSION)
        return rules_only if rules_only is not None else guess
    return _range_of(bounds, guess) or _range_of(bounds, ANY_VERSION) or guess


def _node_guess(cluster: Cluster, node_name: str) -> VersionRange | None:
    node = (cluster.nodes or {}).get(node_name)
    if node is None:
        return None
    for text, words in (
        (node.kube_proxy_version, "Node.status.nodeInfo.kubeProxyVersion, the kubelet's guess"),
        (node.kubelet_version, "the kubelet's version, which kube-proxy is assumed to share"),
    ):
        version = parse_version(text)
        if version is not None:
            return VersionRange(low=version, high=version, source=f"{text} ({words})")
    return None


def _api_guess(cluster: Cluster) -> VersionRange | None:
    """The skew policy lets kube-proxy be older than the API server, never newer; how much older nothing enforces."""
    version = parse_version(cluster.version or "")
    if version is None:
        return None
    words = f"{cluster.version} of the API server, than which kube-proxy must not be newer"
    return VersionRange(low=min(OLDEST, version), high=version, source=words)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleBound:
    """A bound that a node's rules put on the version of the kube-proxy that wrote them, and what shows it."""

    low: Version | None = None
    high: Version | None = None
    why: str


def _matches(chain: Chain, extension: str, *, limit: int = 64) -> list[tuple[Rule, Match]]:
    """Those of the first `limit` rules that have a match of `extension`: kube-proxy's static chains are short."""
    rules = (chain.rule(i) for i in range(min(len(chain), limit)))
    return [(rule, match) for rule in rules for match in rule.matches if match.name == extension]


def _lets_answers_pass(rule: Rule, match: Match) -> bool:
    states = match.option("--ctstate")
    accepts = rule.target is not None and rule.target.name == "ACCEPT"
    return accepts and states is not None and set(states.args[0].split(",")) == {"RELATED", "ESTABLISHED"}


_BOUNDS: WeakKeyDictionary[Ruleset, tuple[RuleBound, ...]] = WeakKeyDictionary()
"""What was found of a ruleset, for as long as that lives: a changed world asks again of nodes that are as before."""


def iptables_bounds(ruleset: Ruleset) -> tuple[RuleBound, ...]:
    """Bounds on the version of kube-proxy that rules of iptables mode show; none where it wrote none.

    Reads the names of nat's chains and a few static chains, so that a dump of any size costs little.
    """
    ruleset = recorded_of(ruleset)
    found = _BOUNDS.get(ruleset)
    if found is None:
        found = _BOUNDS[ruleset] = tuple(_iptables_bounds(ruleset))
    return found


def _iptables_bounds(ruleset: Ruleset) -> Iterator[RuleBound]:
    forward = ruleset.chain("filter", KUBE_FORWARD)
    if forward is None or ruleset.chain("nat", KUBE_NODEPORTS) is None:
        return
    family = detect_family(ruleset.chain_names("nat"), ruleset)
    if family is RuleFamily.LE_1_23:
        yield RuleBound(high=(1, 23), why="KUBE-XLB- chains, which end with 1.23")
    elif family is RuleFamily.V1_24:
        yield RuleBound(low=(1, 24), high=(1, 24), why="KUBE-EXT- chains without KUBE-PROXY-FIREWALL: 1.24")
    elif family is RuleFamily.GE_1_25:
        yield RuleBound(low=(1, 25), why="chain KUBE-PROXY-FIREWALL, which comes with 1.25")
    if ruleset.chain("filter", KUBE_NODEPORTS) is not None:
        yield RuleBound(low=(1, 21), why="filter chain KUBE-NODEPORTS, which comes with 1.21")
    elif ruleset.chain("filter", KUBE_EXTERNAL_SERVICES) is not None:
        yield RuleBound(high=(1, 20), why="no filter chain KUBE-NODEPORTS, which comes with 1.21")
    for_answers = sum(_lets_answers_pass(rule, match) for rule, match in _matches(forward, "conntrack"))
    if for_answers == 2:
        yield RuleBound(high=(1, 22), why="two conntrack rules in KUBE-FORWARD, as up to 1.22")
    elif for_answers == 1:
        yield RuleBound(low=(1, 23), why="one conntrack rule in KUBE-FORWARD, as since 1.23")
    if _matches(forward, "nfacct"):
        yield RuleBound(low=(1, 31), why="an nfacct counter in KUBE-FORWARD, as since 1.31")


def nftables_bounds(nft: NftRuleset) -> Iterator[RuleBound]:
    """Bounds on the version of kube-proxy that the chains and sets of nftables mode show; none where it has none."""
    table = nft.table("ip", NFT_TABLE) or nft.table("ip6", NFT_TABLE)
    if table is None:
        return
    yield RuleBound(low=(1, 29), why="nftables mode, which comes with 1.29")
    if "filter-prerouting-pre-dnat" in table.chains:
        yield RuleBound(low=(1, 33), why="chain filter-prerouting-pre-dnat, which comes with 1.33")
    elif "filter-output-post-dnat" in table.chains:
        yield RuleBound(low=(1, 30), high=(1, 32), why="chain filter-output-post-dnat, of 1.30 to 1.32")
    elif "firewall-check" in table.chains:
        yield RuleBound(high=(1, 29), why="neither of the chains before DNAT that 1.30 and 1.33 brought")
    if table.set_or_map("hairpin-connections") is not None:
        yield RuleBound(low=(1, 36), why="set hairpin-connections, which comes with 1.36")
    elif "mark-for-masquerade" in table.chains:
        yield RuleBound(high=(1, 35), why="chain mark-for-masquerade, which ends with 1.35")


def _rule_bounds(state: NodeState | None) -> tuple[RuleBound, ...]:
    """Bounds from the one set of rules that kube-proxy wrote; none where there are several (leftovers)."""
    if state is None:
        return ()
    found = [iptables_bounds(r) for r in state.rulesets_of("ip")]
    if state.nft is not None:
        found.append(tuple(nftables_bounds(state.nft)))
    found = [bounds for bounds in found if bounds]
    return found[0] if len(found) == 1 else ()


def _allows(bound: RuleBound, version: Version) -> bool:
    return (bound.low is None or bound.low <= version) and (bound.high is None or version <= bound.high)


def _range_of(bounds: tuple[RuleBound, ...], within: VersionRange) -> VersionRange | None:
    """`within` narrowed by the bounds, None where nothing is left."""
    low, high, words = within.low, within.high, [within.source] if within is not ANY_VERSION else []
    for bound in bounds:
        new_low, new_high = max(low, bound.low or low), min(high, bound.high or high)
        if (new_low, new_high) != (low, high):
            words.append(bound.why)
        low, high = new_low, new_high
    if low > high:
        return None
    return VersionRange(low=low, high=high, source="; ".join(words) or within.source)
