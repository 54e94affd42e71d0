"""A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), YAML or JSON → model.

Field meanings: https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/.
"""

from __future__ import annotations

from typing import Any

from ktp.errors import EvidenceError
from ktp.model.host import KubeProxyConfig
from ktp.parse.text import (
    SHAPE_ERRORS,
    decode_text,
    load_json,
    number_of,
    object_of,
    optional_bool,
    optional_string,
    string_of,
    strings_of,
)

# Keys of the ConfigMap that kubeadm and EKS keep the configuration in.
_CONFIG_MAP_KEYS = ("config.conf", "config")
_MASQUERADE_BIT = 14


def parse_kube_proxy_config(data: bytes | str, *, source: str = "kube-proxy-config.yaml") -> KubeProxyConfig:
    """What the configuration says; "" and [] are taken, as kube-proxy takes them, for "not said".

    The masquerade fields are those of the section that kube-proxy reads in its mode: `nftables` in nftables mode,
    else `iptables`, which IPVS mode uses too. The ConfigMap that holds a configuration will do as well.
    Raises EvidenceError naming `source`.
    """
    remedy = "copy the file that kube-proxy's --config names"
    try:
        document = object_of(_load(data, source, remedy))
        if document.get("kind") == "ConfigMap":
            held = object_of(document.get("data"))
            inner = next((held[key] for key in _CONFIG_MAP_KEYS if held.get(key)), None)
            if inner is None:
                raise ValueError("the ConfigMap holds no configuration")
            document = object_of(_load(string_of(inner), source, remedy))
        if document.get("kind") not in (None, "KubeProxyConfiguration"):
            raise ValueError(f"its kind is {document['kind']}")
        if not document:
            raise ValueError("it is empty")
        return _config(document, source)
    except SHAPE_ERRORS as error:
        raise EvidenceError(f"{source} is not a KubeProxyConfiguration: {error}", hint=remedy) from error


def _load(data: bytes | str, source: str, remedy: str) -> Any:
    text = decode_text(data, source)
    if text.lstrip().startswith("{"):
        return load_json(text, source, remedy=remedy)
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise EvidenceError(f"{source} is not valid YAML: {reason}", hint=remedy) from error


def _config(document: dict[str, Any], source: str) -> KubeProxyConfig:
    mode = optional_string(document.get("mode"))
    iptables = object_of(document.get("iptables"))
    masquerade = object_of(document.get("nftables")) if mode == "nftables" else iptables
    detect_local = object_of(document.get("detectLocal"))
    return KubeProxyConfig(
        mode=mode,
        hostname_override=optional_string(document.get("hostnameOverride")),
        cluster_cidr=optional_string(document.get("clusterCIDR")),
        node_port_addresses=strings_of(document.get("nodePortAddresses")) or None,
        masquerade_all=bool(optional_bool(masquerade.get("masqueradeAll"))),
        masquerade_bit=number_of(masquerade.get("masqueradeBit"), _MASQUERADE_BIT),
        localhost_node_ports=optional_bool(iptables.get("localhostNodePorts")),
        detect_local_mode=optional_string(document.get("detectLocalMode")),
        bridge_interface=optional_string(detect_local.get("bridgeInterface")),
        interface_name_prefix=optional_string(detect_local.get("interfaceNamePrefix")),
        feature_gates={
            name: bool(optional_bool(value))
            for name, value in object_of(document.get("featureGates")).items()
        },
        healthz_bind_address=optional_string(document.get("healthzBindAddress")),
        source=source,
    )
