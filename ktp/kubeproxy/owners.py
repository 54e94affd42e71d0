"""Who writes chains and tables of such names: one list for iptables and nftables, explanations and findings."""

from __future__ import annotations

from typing import NamedTuple

from ktp.kubeproxy.names import is_kube_table


class Owner(NamedTuple):
    """A program that writes rules.

    `chains` are beginnings of its chains' names; `words` are in the names of its nft tables and in its comments, in
    small letters.
    """

    name: str
    chains: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    bans: bool = False  # keeps single clients out on purpose


KUBE = Owner("kube-proxy or kubelet", ("KUBE-",), ("kubernetes", "kube-proxy"))
HOST_PORTS = Owner("kubelet's or CRI-O's host ports", ("KUBE-HOSTPORTS", "KUBE-HP-"))
UFW = Owner("ufw", ("ufw", "UFW"), ("ufw",))
DOCKER = Owner("Docker", ("DOCKER",), ("docker",))
FIREWALLD = Owner(
    "firewalld",
    (
        "IN_", "FWD_", "FWDI_", "FWDO_", "POST_", "PRE_", "INPUT_ZONES", "FORWARD_ZONES", "FORWARD_IN_ZONES",
        "FORWARD_OUT_ZONES", "POSTROUTING_", "PREROUTING_", "INPUT_direct", "FORWARD_direct", "OUTPUT_direct",
        "filter_IN_", "filter_FWD", "filter_FORWARD", "filter_INPUT", "nat_POST", "nat_PRE",
    ),
    ("firewalld",),
)  # fmt: skip
# Longer beginnings first.
_OWNERS = (
    Owner("kube-router", ("KUBE-ROUTER", "KUBE-NWPLCY", "KUBE-POD-FW", "KUBE-SRC-DST"), ("kube-router",)),
    HOST_PORTS,
    KUBE,
    DOCKER,
    UFW,
    Owner("Calico", ("cali-",), ("cali:", "calico", "felix")),
    Owner("Cilium", ("CILIUM", "OLD_CILIUM"), ("cilium",)),
    Owner("flannel", ("FLANNEL",), ("flannel",)),
    Owner("Weave", ("WEAVE",), ("weave",)),
    Owner("Antrea", ("ANTREA",), ("antrea",)),
    Owner("OVN-Kubernetes", ("OVN-KUBE", "OVNKUBE"), ("ovn-kubernetes",)),
    Owner("the CNI's firewall plugin", ("CNI-FORWARD", "CNI-ADMIN"), ("cnifw",)),
    Owner("the CNI's portmap plugin (hostPorts)", ("CNI-",), ("cni_hostport",)),
    Owner("libvirt", ("LIBVIRT",), ("libvirt",)),
    Owner("fail2ban", ("f2b-",), ("fail2ban", "f2b"), bans=True),
    Owner("CrowdSec", ("CROWDSEC", "crowdsec"), ("crowdsec",), bans=True),
    Owner("sshguard", ("sshguard",), ("sshguard",), bans=True),
    FIREWALLD,
    Owner("the AWS VPC CNI", ("AWS-",), ("aws, ",)),
    Owner("Azure NPM", ("AZURE-NPM",), ("azure",)),
    Owner("Istio", ("ISTIO",), ("istio",)),
    Owner("kindnet", ("KIND-MASQ",), ("kindnet",)),
    Owner("ip-masq-agent", ("IP-MASQ",), ("ip-masq-agent",)),
    Owner("OpenShift", ("OPENSHIFT-",), ("openshift",)),
    Owner("Submariner", ("SUBMARINER-",), ("submariner",)),
    Owner("Tailscale", ("ts-",), ("tailscale",)),
    Owner("Podman", ("NETAVARK",), ("netavark",)),
    Owner("NixOS's firewall", ("nixos-fw",)),
    Owner("OpenWrt's firewall", ("zone_", "OPENWRT"), ("fw4",)),
    Owner("shorewall", ("shorewall", "SHOREWALL", "net-fw", "loc-fw", "fw-net", "~excl"), ("shorewall",)),
)


def owner_of_chain(name: str) -> Owner | None:
    """Whose a chain of that name is."""
    return next((owner for owner in _OWNERS if name.startswith(owner.chains)), None)


def owner_of_table(name: str) -> Owner | None:
    """Whose a native nft table is, called `FAMILY NAME`."""
    if is_kube_table(*name.partition(" ")[::2]):
        return KUBE
    return _by_words(name.partition(" ")[2])


def owner_of_comment(comment: str) -> Owner | None:
    """Who likely wrote such a comment: for people to look there, and for nothing else."""
    return _by_words(comment)


def _by_words(text: str) -> Owner | None:
    low = text.lower()
    return next((owner for owner in _OWNERS if any(word in low for word in owner.words)), None)
