"""Where the API server is and how to prove who asks: the search for a configuration, in kubectl's order.

The `kubernetes` package does the authentication (tokens, client certificates, exec plugins, in-cluster); it
is imported only once a configuration was found.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment

from ktp.errors import KubeConfigError, NotFoundError, UsageError
from ktp.model.record import dataclass

# Kubeconfigs that kubeadm, kubelet and k3s leave on a node.
NODE_KUBECONFIGS = (
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/etc/rancher/k3s/k3s.yaml",
)
# How long a credential plugin may take that cannot ask anybody.
PLUGIN_TIMEOUT = 60.0
SERVICE_ACCOUNT_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

_CREDENTIAL_KEYS = frozenset(
    {
        "auth-provider", "client-certificate", "client-certificate-data", "exec", "password", "token",
        "tokenFile", "username",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfiguration:
    """How to reach an API server.

    `client` is a `kubernetes.client.Configuration`. `context` is None in a pod, where there is no kubeconfig;
    `namespace` is what a name without a namespace means; `origin` says in words where this was found.
    """

    client: Any
    context: str | None
    namespace: str
    origin: str


def load_configuration(
    kubeconfig: str | Path | None = None,
    context: str | None = None,
    *,
    node_kubeconfigs: tuple[str, ...] = NODE_KUBECONFIGS,
) -> ApiConfiguration:
    """The first configuration of `kubeconfig`, $KUBECONFIG, ~/.kube/config, this pod's, and a node's files.

    Raises UsageError for a file or context that was asked for and does not exist, KubeConfigError for
    anything else that leaves no usable configuration.
    """
    if kubeconfig is not None:
        path = Path(kubeconfig).expanduser()
        if not path.exists():
            raise UsageError(f"there is no kubeconfig at {path}", hint="check the path given to --kubeconfig")
        return _load_files([path], context)
    if variable := os.environ.get("KUBECONFIG"):
        named = [Path(part).expanduser() for part in variable.split(os.pathsep) if part]
        paths = [path for path in named if path.exists()]
        if not paths:
            raise KubeConfigError(
                f"KUBECONFIG names {', '.join(map(str, named))}, which does not exist",
                hint="correct or unset KUBECONFIG, or give --kubeconfig",
            )
        return _load_files(paths, context)
    home = Path("~/.kube/config").expanduser()
    if home.exists() and _read_kubeconfig(home).get("contexts"):
        return _load_files([home], context)
    if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _load_in_cluster()
    unreadable = []
    for path in map(Path, node_kubeconfigs):
        if os.access(path, os.R_OK):
            return _load_files([path], context)
        if path.exists():
            unreadable.append(str(path))
    hint = "give --kubeconfig, or --snapshot to answer from recorded evidence"
    if unreadable:
        hint = f"run as root to use {unreadable[0]}, or {hint}"
    raise KubeConfigError(
        f"no configuration for an API server was found: not in $KUBECONFIG, {home}, a pod's service account, "
        f"{', '.join(node_kubeconfigs)}",
        hint=hint,
    )


def _load_in_cluster() -> ApiConfiguration:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    client = Configuration()
    try:
        load_incluster_config(client_configuration=client)
        namespace = _service_account_namespace()
    except (ConfigException, OSError) as error:
        raise KubeConfigError(
            f"the pod's service account cannot be used: {_sentence(error)}",
            hint="let the pod mount its service account token (automountServiceAccountToken), "
            "or give --kubeconfig",
        ) from None
    _set_proxy(client, None)
    return ApiConfiguration(
        client=client, context=None, namespace=namespace, origin="service account of this pod"
    )


def _service_account_namespace() -> str:
    try:
        return Path(SERVICE_ACCOUNT_NAMESPACE).read_text(encoding="utf-8").strip() or "default"
    except FileNotFoundError:
        return "default"


def _read_kubeconfig(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise KubeConfigError(
            f"the kubeconfig {path} cannot be read: {_sentence(error)}",
            hint="see who may read it (ls -l), or give another one with --kubeconfig",
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        raise KubeConfigError(
            f"the kubeconfig {path} is not valid YAML{line}", hint="correct the file"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise KubeConfigError(
            f"the file {path} is not a kubeconfig", hint="check the path given to --kubeconfig"
        )
    return content


def _entries(configs: Iterable[Mapping[str, Any]], section: str, body: str) -> dict[str, Mapping[str, Any]]:
    """The named entries of one section over all files; as in kubectl, the first of one name counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        listed = config.get(section)
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                inner = entry.get(body)
                found.setdefault(entry["name"], inner if isinstance(inner, dict) else {})
    return found


def _load_files(paths: list[Path], context: str | None) -> ApiConfiguration:
    words = ", ".join(map(str, paths))
    configs = [_read_kubeconfig(path) for path in paths]
    contexts = _entries(configs, "contexts", "context")
    # kubectl takes the first file's current-context, the kubernetes package the last one's.
    chosen = context or next(
        (config["current-context"] for config in configs if config.get("current-context")), ""
    )
    if not chosen:
        raise KubeConfigError(
            f"the kubeconfig {words} names no current context",
            hint=f"give --context ({', '.join(sorted(contexts)) or 'the file has none'})",
        )
    if chosen not in contexts:
        error = NotFoundError if context else KubeConfigError
        raise error(
            f"the kubeconfig {words} has no context {chosen!r}",
            hint=f"its contexts are: {', '.join(sorted(contexts))}"
            if contexts
            else "it has no contexts at all",
        )
    cluster_name, user_name = contexts[chosen].get("cluster"), contexts[chosen].get("user")
    cluster = _entries(configs, "clusters", "cluster").get(str(cluster_name))
    user = _entries(configs, "users", "user").get(str(user_name)) if user_name else {}
    if cluster is None or user is None or not cluster.get("server"):
        missing = (
            f"cluster {cluster_name!r}" if cluster is None
            else f"user {user_name!r}" if user is None
            else f"server of cluster {cluster_name!r}"
        )  # fmt: skip
        raise KubeConfigError(
            f"the context {chosen!r} of the kubeconfig {words} needs the {missing}, which is not there",
            hint="correct the file, or choose another context with --context",
        )
    client = _load_client(paths, chosen, words)
    if _CREDENTIAL_KEYS & set(user) and not (client.auth_settings() or client.cert_file):
        raise _no_credentials(str(user_name), words, None)
    # Versions of the kubernetes package before 37 ignore proxy-url and NO_PROXY.
    _set_proxy(client, cluster.get("proxy-url"))
    namespace = contexts[chosen].get("namespace") or "default"
    return ApiConfiguration(client=client, context=chosen, namespace=namespace, origin=f"kubeconfig {words}")


def _set_proxy(client: Any, proxy_url: str | None) -> None:
    """As kubectl: `proxy-url`, else HTTPS_PROXY (HTTP_PROXY for http) where NO_PROXY does not name the server."""
    server = urlsplit(client.host)
    client.proxy = proxy_url or getproxies_environment().get(server.scheme)
    client.no_proxy = ""
    if not proxy_url and client.proxy:
        if "://" not in client.proxy:
            client.proxy = f"http://{client.proxy}"
        # Go's client asks neither localhost nor its addresses through a proxy, whatever NO_PROXY says.
        if _is_near(server, os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""):
            client.proxy = None
    if client.proxy and (proxy := urlsplit(client.proxy)).username:
        from urllib3.util import make_headers

        words = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
        client.proxy_headers = make_headers(proxy_basic_auth=words)


def _is_near(server: SplitResult, no_proxy: str) -> bool:
    """Whether a server is asked without the proxy of the environment (golang.org/x/net/http/httpproxy, useProxy)."""
    host = (server.hostname or "").rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    try:
        port = server.port or {"https": 443, "http": 80}.get(server.scheme)
    except ValueError:
        return False  # the request will say what is wrong with it
    for entry in filter(None, (part.strip().lower() for part in no_proxy.split(","))):
        if entry == "*":
            return True
        # [2001:db8::1]:6443, 10.0.0.1:6443, example.net:6443; an IPv6 address alone has no port
        found = re.fullmatch(r"(?:\[(.*)\]|([^:]*)):(\d+)", entry)
        if found and found[3] != str(port):
            continue
        name = (found[1] or found[2]) if found else entry
        if address is not None:
            with contextlib.suppress(ValueError):
                if address in ip_network(name, strict=False):
                    return True
            continue
        name = name.removeprefix("*")
        if host.endswith(name if name.startswith(".") else f".{name}") or host == name:
            return True
    return False


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _load_client(paths: list[Path], context: str, words: str) -> Any:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, kube_config, load_kube_config

    from ktp.collect.exec_plugin import provider

    client = Configuration()
    # For good, since tokens are renewed later.
    kube_config.ExecProvider = provider(timeout=PLUGIN_TIMEOUT)
    with _logged_errors() as logged:
        try:
            load_kube_config(
                config_file=os.pathsep.join(map(str, paths)),
                context=context,
                client_configuration=client,
                # Looking must not change the user's files.
                persist_config=False,
            )
        # The package checks hardly anything, so a misshapen file ends in whatever its first use raises.
        except (ConfigException, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise KubeConfigError(
                f"the context {context!r} of the kubeconfig {words} cannot be used: {_sentence(error)}",
                hint=f"see whether `kubectl --context {context} version` works",
            ) from None
    if logged:
        # A failed exec plugin is only logged; asking the server without credentials would blame the server.
        raise _no_credentials(context, words, logged[0])
    return client


def _no_credentials(who: str, words: str, reason: str | None) -> KubeConfigError:
    return KubeConfigError(
        f"the kubeconfig {words} gave no credentials for {who!r}{': ' + reason if reason else ''}",
        hint="log in again, and see whether kubectl works with the same kubeconfig",
    )


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collects what the root logger is told at level ERROR instead of letting it reach stderr."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(" ".join(record.getMessage().split()))

    root, collector = logging.getLogger(), Collector(logging.ERROR)
    root.addHandler(collector)
    try:
        yield messages
    finally:
        root.removeHandler(collector)


def _sentence(error: BaseException) -> str:
    """An exception's own words on one line, without a full stop."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() + (f" ({error.filename})" if error.filename else "")
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
