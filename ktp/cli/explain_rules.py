"""`ktp explain-rules`: the rules that a packet meets, as a tree, each in plain words."""

from __future__ import annotations

import io
import sys

import click

from ktp.cli.complete import services
from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, settings
from ktp.errors import UsageError


@ktp_command("explain-rules", short_help="The rules that a Service's packets meet, each in plain words.")
@click.argument("name", metavar="[NAMESPACE/]NAME", required=False, shell_complete=services)
@click.option("--node-port", metavar="N[/udp]", help="Explain this node port.")
@click.option("--chain", metavar="CHAIN", help="Explain this chain, e.g. KUBE-MARK-MASQ or masquerading.")
@click.option(
    "--rules",
    metavar="FILE",
    help="Answer from a dump alone (- is stdin): iptables-save, nft list ruleset, nft -j list ruleset, ipvsadm -Sn, "
    "cilium-dbg bpf lb list.",
)
@click.option(
    "--from",
    "vantage",
    type=click.Choice(["external", "node", "localhost", "pod"]),
    default="external",
    help="Where the client is (default: external).",
)
@common_options()
def command(
    name: str | None, node_port: str | None, chain: str | None, rules: str | None, vantage: str
) -> int:
    """Shows the rules that a packet meets, in order, and says of each what it is for.

    \b
      ktp explain-rules shop/web                           every front end of a Service, on each node
      ktp explain-rules 10.96.0.10:53/udp                  one address, whosever it is
      ktp explain-rules --node-port 31015                  one node port, on this node
      iptables-save | ktp explain-rules --node-port 31015 --rules -
      nft -j list ruleset | ktp explain-rules --node-port 31015 --rules -
      ktp explain-rules --chain KUBE-MARK-MASQ --rules dump.txt

    With --rules neither an API server nor the node's addresses are needed; what the dump is, its content tells.

    Exit status: 0 the packet reaches an endpoint, 1 it does not, 2 no such node port, chain or Service, 3 no rules
    could be read, 4 undetermined.
    """
    chosen = settings()
    asked = [w for w in (name, node_port, chain) if w is not None]
    if len(asked) != 1:
        raise UsageError(
            "say what to explain, one of: NAMESPACE/NAME, --node-port N, --chain CHAIN"
            if not asked
            else "a Service, --node-port and --chain are three different questions; ask one of them"
        )
    if rules is not None and (chosen.snapshot is not None or chosen.demo):
        raise UsageError("--rules and --snapshot or --demo are different evidence; give one of them")
    from ktp.app.explain_rules import (
        explain_address,
        explain_chain,
        explain_node_port,
        explain_service,
        open_rules,
    )
    from ktp.parse.dialled import is_address
    from ktp.render.rules_tree import print_explanations

    if node_port is not None:
        explained = explain_node_port(chosen, node_port, vantage, open_rules(rules, sys.stdin))
    elif chain is not None:
        explained = explain_chain(chosen, chain, open_rules(rules, sys.stdin))
    elif name is not None and is_address(name):
        explained = explain_address(chosen, name, vantage, open_rules(rules, sys.stdin))
    elif rules is not None:
        raise UsageError(
            "a dump knows no Services", hint="ask for IP:PORT, --node-port N or --chain CHAIN with --rules"
        )
    else:
        explained = explain_service(chosen, name or "", vantage)
    if chosen.output in ("json", "yaml"):
        from ktp.render.rules_tree import explanations_object
        from ktp.render.structured import dump

        dump(explanations_object(explained.explanations), chosen.output, sys.stdout)
        return int(explained.status)
    from ktp.cli.terminal import use_color, width

    if chosen.output != "text":
        from ktp.render.document import WIDTH, document

        page = io.StringIO()
        print_explanations(explained.explanations, page, width=WIDTH, color=False, fold_rules=False)
        title = name or chain or f"node port {node_port}"
        sys.stdout.write(document(page.getvalue(), f"Rules of {title}", chosen.output))
        return int(explained.status)
    print_explanations(
        explained.explanations,
        sys.stdout,
        width=width(),
        color=use_color(chosen.color, sys.stdout),
        fold_rules=sys.stdout.isatty(),
    )
    return int(explained.status)
