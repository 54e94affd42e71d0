"""Credential plugins of a kubeconfig (`exec`), run as kubectl runs them.

The kubernetes package runs them too, and waits for ever, lets them read ktp's standard input, and fails on the one
that fails in a terminal. Here a plugin may ask only somebody who can answer (standard input and error are a terminal
and `interactiveMode` does not forbid it: k8s.io/client-go/plugin/pkg/client/auth/exec); any other one has
a time limit and reads nothing, and what it leaves behind is ended with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from ktp.collect.children import ChildResult, ending_children, run_child

_SKEW = timedelta(minutes=5)  # kubernetes.config.kube_config.EXPIRY_SKEW_PREVENTION_DELAY

# The credentials had so far, by the question: a configuration is loaded more than once in a run.
_known: dict[str, dict[str, Any]] = {}
_lock = threading.Lock()


class PluginError(Exception):
    """Why there are no credentials, in words that name the plugin."""


def run_plugin(
    config: dict[str, Any],
    cluster: dict[str, Any] | None,
    folder: str | None,
    *,
    timeout: float,
) -> dict[str, Any]:
    """The `status` of the ExecCredential that the plugin of the `exec` section `config` prints.

    `cluster` is the kubeconfig's, for plugins that ask for it; `folder` the one of the kubeconfig. Raises PluginError.
    """
    command, api_version = config.get("command"), config.get("apiVersion")
    if not isinstance(command, str) or not command or not isinstance(api_version, str):
        raise PluginError("its exec section needs a command and an apiVersion")
    interactive = _may_ask(command, config.get("interactiveMode"))
    environment = {**os.environ, **_variables(config)}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(_question(config, cluster, interactive))
    words = [command, *map(str, config.get("args") or ())]
    try:
        if interactive:
            done = _ask_the_user(words, environment, folder)
        else:
            done = _run_alone(words, environment, folder, timeout)
    except OSError as error:
        hint = f" ({' '.join(str(config['installHint']).split())})" if config.get("installHint") else ""
        raise PluginError(
            f"the credential plugin {command} cannot be run: {(error.strerror or str(error)).lower()}{hint}"
        ) from None
    if done.status is None:
        raise PluginError(
            f"the credential plugin {command} did not end within {timeout:g} s; "
            "it may wait for a login, which only a terminal lets it ask for"
        )
    if done.status != 0:
        said = " ".join(done.stderr.decode(errors="replace").split()[-40:]).rstrip(".")
        raise PluginError(
            f"the credential plugin {command} failed with exit status {done.status}"
            + (f": {said}" if said else "")
        )
    return _status(command, api_version, done.stdout)


def provider(*, timeout: float) -> Callable[..., Any]:
    """What stands in for `kubernetes.config.exec_provider.ExecProvider`."""

    class Provider:
        def __init__(self, exec_config: Any, cwd: str | None, cluster: Any = None) -> None:
            self._config, self._folder = exec_config.value, cwd or None
            self._cluster = cluster.value if cluster is not None else None

        def run(self, previous_response: object = None) -> dict[str, Any]:  # noqa: ARG002 - the package's signature
            key = json.dumps((self._config, self._cluster, self._folder), sort_keys=True, default=str)
            with _lock:
                status = _known.get(key)
                if status is None or _has_ended(status):
                    status = run_plugin(self._config, self._cluster, self._folder, timeout=timeout)
                    _known[key] = status
            ends = _time(status.get("expirationTimestamp"))
            found = {name: value for name, value in status.items() if name != "expirationTimestamp"}
            # From five minutes before the end on, the package would ask again for every request.
            return found if ends is None else {**found, "expirationTimestamp": (ends + _SKEW).isoformat()}

    return Provider


def _may_ask(command: str, mode: object) -> bool:
    """Whether the plugin may ask the user; PluginError where it must and cannot."""
    there = sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
    if mode == "Always" and not there:
        raise PluginError(f"the credential plugin {command} must ask somebody, and there is no terminal")
    return there and mode != "Never"


def _variables(config: dict[str, Any]) -> dict[str, str]:
    entries = config.get("env") or ()
    return {
        str(e["name"]): str(e["value"])
        for e in entries
        if isinstance(e, dict) and {"name", "value"} <= set(e)
    }


def _question(config: dict[str, Any], cluster: dict[str, Any] | None, interactive: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": interactive}
    if config.get("provideClusterInfo") and cluster:
        told = {key: value for key, value in cluster.items() if key != "extensions"}
        for extension in cluster.get("extensions") or ():
            if extension.get("name") == "client.authentication.k8s.io/exec":
                told["config"] = extension.get("extension")
        spec["cluster"] = told
    return {"apiVersion": config["apiVersion"], "kind": "ExecCredential", "spec": spec}


def _run_alone(
    words: list[str], environment: dict[str, str], folder: str | None, timeout: float
) -> ChildResult:
    # A token that is renewed in another thread must not end the commands that are at work meanwhile.
    in_main = threading.current_thread() is threading.main_thread()
    with ending_children() if in_main else contextlib.nullcontext():
        return run_child(words, timeout=timeout, environment=environment, folder=folder)


def _ask_the_user(words: list[str], environment: dict[str, str], folder: str | None) -> ChildResult:
    """Run the plugin in the foreground: what it asks is seen and answered, and Ctrl-C ends it and ktp."""
    done = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, check=False)
    return ChildResult(status=done.returncode, stdout=done.stdout, stderr=b"")


def _status(command: str, api_version: str, stdout: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(stdout)
    except (ValueError, RecursionError):
        answer = None
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or answer.get("kind") != "ExecCredential" or not isinstance(status, dict):
        raise PluginError(f"the credential plugin {command} prints no ExecCredential")
    if answer.get("apiVersion") != api_version:
        raise PluginError(
            f"the credential plugin {command} answers with apiVersion {answer.get('apiVersion')}, "
            f"and the kubeconfig asks for {api_version}"
        )
    if not status.get("token") and not (status.get("clientCertificateData") and status.get("clientKeyData")):
        raise PluginError(
            f"the credential plugin {command} prints neither a token nor a client certificate with key"
        )
    if _has_ended(status):
        raise PluginError(
            f"the credential plugin {command} prints a credential that expired at {status['expirationTimestamp']}, "
            "by the clock of this machine"
        )
    return status


def _has_ended(status: dict[str, Any]) -> bool:
    ends = _time(status.get("expirationTimestamp"))
    return ends is not None and ends <= datetime.now(timezone.utc)


def _time(text: object) -> datetime | None:
    """An RFC 3339 time; None for none, and for what cannot be read as one."""
    try:
        # Python before 3.11 does not know Z.
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
