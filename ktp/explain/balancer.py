"""The table of a load balancer in the kernel (IPVS, Cilium) alone: no rules, no packet, a port that it has or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.kubeproxy.names import host_port
from ktp.model.assumption import Assumption
from ktp.model.explanation import ChainNode, EndpointShare, Explanation, Verdict
from ktp.model.trace import Disposition, Symptom


def explain_table(
    chain: ChainNode,
    shares: Mapping[str, float],
    *,
    node: str,
    protocol: str,
    port: int,
    address: str | None,
    source: str,
    written_by: str,
    sends: str,
    why: str,
    rule: str,
    assumption: Assumption,
    notes: Iterable[str],
) -> Explanation:
    """What a client outside the cluster meets at the entries of a port, or of `address`, which `chain` shows.

    `shares` is the part of new connections of each `ip:port` that the deciding entry `rule` sends to: none where it
    refuses. `sends` says what the load balancer does otherwise, `why` why it does so.
    """
    verdict = Verdict(
        disposition=(Disposition.DELIVERED if shares else Disposition.REJECTED).value,
        symptom=(Symptom.CONNECTS if shares else Symptom.REFUSED).value,
        headline=f"delivered: {sends}" if shares else "rejected: the client sees 'connection refused'",
        why=why,
        node=node,
        table=chain.table,
        chain=chain.name,
        rule="" if shares else rule,
        endpoints=tuple(
            EndpointShare(address=endpoint, share=share, symptom=Symptom.CONNECTS.value)
            for endpoint, share in shares.items()
        ),
        assumptions=(assumption,),
    )
    where = host_port(address, port) if address else f"port {port}"
    return Explanation(
        subject=f"{chain.name} of {where}/{protocol}",
        node=node,
        vantage="a client outside the cluster",
        source=source,
        rules_of=written_by,
        verdict=verdict,
        chains=(chain,),
        notes=tuple(notes),
    )
