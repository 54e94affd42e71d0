"""Which reads the current user may do, asked of the API server itself, and the manifest that adds the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ktp.collect.parallel import run_in_parallel
from ktp.errors import ApiError, ApiForbiddenError, ApiNotFoundError
from ktp.model.announcing import LEASES, RESOURCES
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi

_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WHO_AM_I = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
ROLE = "ktp-reader"
KUBE_PROXY_NAMESPACE = "kube-system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One permission that ktp uses. `mode` is "api", which every run needs, or "kube-proxy".

    `namespace` None means the whole cluster; `names` are the only objects that it is needed for, where given.
    `needed` is False where ktp answers without it, and says less.
    """

    mode: str = "api"
    verb: str
    group: str = ""
    resource: str
    namespace: str | None = None
    names: tuple[str, ...] = ()
    purpose: str
    needed: bool = False

    def __str__(self) -> str:
        """`get configmaps/kube-proxy in kube-system`, as `kubectl auth can-i` spells it."""
        what = f"{self.resource}.{self.group}" if self.group else self.resource
        name = f" {self.names[0]}" if self.names else ""
        where = f"in namespace {self.namespace}" if self.namespace else "in all namespaces"
        return f"{self.verb} {what}{name}" + ("" if self.resource in _CLUSTER_SCOPED else f" {where}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The API server's answer about one permission."""

    permission: Permission
    allowed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who the API server takes the sender for. `name` is None where it does not say (before 1.28)."""

    name: str | None = None
    groups: tuple[str, ...] = ()


_CLUSTER_SCOPED = frozenset(("nodes", "namespaces"))


def permissions(namespace: str | None) -> tuple[Permission, ...]:
    """Everything that ktp may ask the API server for, about one namespace or, if None, about all."""
    wide = partial(Permission, namespace=namespace)
    slices = partial(wide, group="discovery.k8s.io", resource="endpointslices", needed=True)
    kube_proxy = partial(Permission, mode="kube-proxy", namespace=KUBE_PROXY_NAMESPACE, needed=True)
    config = partial(Permission, namespace=KUBE_PROXY_NAMESPACE, resource="configmaps", verb="get")
    return (
        wide(verb="get", resource="services", purpose="the Service that is asked about", needed=True),
        wide(verb="list", resource="services", purpose="all Services, and names near a misspelt one", needed=True),
        slices(verb="list", purpose="the endpoints of a Service"),
        wide(verb="get", resource="endpoints", purpose="the endpoints, where there is no EndpointSlice of a Service"),
        wide(verb="list", resource="endpoints", purpose="the same for all Services"),
        wide(verb="list", resource="pods", purpose="why a pod is not an endpoint, and pods by name"),
        Permission(verb="list", resource="nodes", purpose="the nodes and their addresses", needed=True),
        config(names=("kube-proxy",), purpose="kube-proxy's mode and settings, as kubeadm keeps them"),
        config(names=("kube-proxy-config",), purpose="the same, as EKS keeps them"),
        Permission(
            verb="list", resource="pods", namespace=KUBE_PROXY_NAMESPACE, purpose="the version of kube-proxy"
        ),
        Permission(verb="get", resource="namespaces", purpose="telling a misspelt namespace from an empty one"),
        Permission(verb="list", resource="namespaces", purpose="the names next to a misspelt namespace"),
        wide(
            verb="list", group="networking.k8s.io", resource="networkpolicies",
            purpose="whether a policy keeps clients out",
        ),
        *(
            Permission(
                verb="list", group=resource.group, resource=resource.plural,
                purpose=f"whether {resource.provider.value} announces a load-balancer address",
            )
            for resource in RESOURCES
        ),
        Permission(
            verb="list", group=LEASES.group, resource=LEASES.plural, namespace=KUBE_PROXY_NAMESPACE,
            purpose="from which node Cilium announces a load-balancer address",
        ),
        kube_proxy(verb="list", resource="pods", purpose="finding kube-proxy's pod on each node"),
        kube_proxy(verb="get", resource="pods/exec", purpose="running iptables-save in it, over a WebSocket"),
        kube_proxy(verb="create", resource="pods/exec", purpose="the same, asked for by servers from 1.35 on"),
    )  # fmt: skip


def who_am_i(api: KubeApi) -> User:
    """The user as the API server knows it; without a name where the server cannot tell."""
    question = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = api.review(_WHO_AM_I, question)
    except (ApiNotFoundError, ApiForbiddenError):
        return User()
    info = (answer.get("status") or {}).get("userInfo") or {}
    return User(name=info.get("username"), groups=tuple(info.get("groups") or ()))


def ask_permissions(api: KubeApi, asked: Sequence[Permission]) -> tuple[Allowed, ...]:
    """The server's answer about each permission. Raises ApiError where it does not answer at all."""
    return tuple(run_in_parallel([partial(_ask, api, permission) for permission in asked]))


def _ask(api: KubeApi, permission: Permission) -> Allowed:
    resource, _, subresource = permission.resource.partition("/")
    attributes = {
        "verb": permission.verb, "group": permission.group, "resource": resource, "subresource": subresource,
        "namespace": permission.namespace or "", "name": permission.names[0] if permission.names else "",
    }  # fmt: skip
    question = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    status = api.review(_ACCESS_REVIEWS, question).get("status")
    if not isinstance(status, dict) or not isinstance(status.get("allowed"), bool):
        raise ApiError(
            "the API server does not say what these credentials may do",
            hint="`kubectl auth can-i --list` asks the same",
        )
    return Allowed(permission=permission, allowed=status["allowed"], reason=str(status.get("reason") or ""))


# ------------------------------------------------------------------------------------------------- the manifest


def manifest(missing: Iterable[Permission], user: User) -> list[dict[str, Any]]:
    """Roles with exactly the permissions of `missing`, and their bindings to `user`; none for none."""
    by_namespace: dict[str | None, list[Permission]] = {}
    for permission in missing:
        by_namespace.setdefault(permission.namespace, []).append(permission)
    # What is allowed everywhere need not be allowed again in one namespace.
    everywhere = {(p.verb, p.group, p.resource) for p in by_namespace.get(None, ())}
    documents: list[dict[str, Any]] = []
    for namespace in sorted(by_namespace, key=lambda each: each or ""):
        rules = _rules(
            p
            for p in by_namespace[namespace]
            if namespace is None or (p.verb, p.group, p.resource) not in everywhere
        )
        if rules:
            documents += _role(namespace, rules, user)
    return documents


def _rules(wanted: Iterable[Permission]) -> list[dict[str, Any]]:
    verbs: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for permission in wanted:
        names = permission.names if permission.names else ()
        found = verbs.setdefault((permission.group, permission.resource, names), [])
        if permission.verb not in found:
            found.append(permission.verb)
    merged: dict[tuple[str, tuple[str, ...], bool], tuple[list[str], list[str]]] = {}
    for (group, resource, names), needed in verbs.items():
        resources, all_names = merged.setdefault((group, tuple(needed), bool(names)), ([], []))
        if resource not in resources:
            resources.append(resource)
        all_names.extend(names)
    return [
        {
            "apiGroups": [group], "resources": resources,
            **({"resourceNames": names} if named else {}), "verbs": list(needed),
        }
        for (group, needed, named), (resources, names) in merged.items()
    ]  # fmt: skip


def _role(namespace: str | None, rules: list[dict[str, Any]], user: User) -> list[dict[str, Any]]:
    prefix = "Cluster" if namespace is None else ""
    metadata = {"name": ROLE} if namespace is None else {"name": ROLE, "namespace": namespace}
    api = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{api}/v1", "kind": f"{prefix}Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": f"{prefix}RoleBinding",
            "metadata": dict(metadata),
            "roleRef": {"apiGroup": api, "kind": f"{prefix}Role", "name": ROLE},
            "subjects": [_subject(user, api)],
        },
    ]


def _subject(user: User, api: str) -> dict[str, str]:
    parts = (user.name or "").split(":")
    if len(parts) == 4 and parts[:2] == ["system", "serviceaccount"]:
        return {"kind": "ServiceAccount", "name": parts[3], "namespace": parts[2]}
    return {"apiGroup": api, "kind": "User", "name": user.name or "USER"}
