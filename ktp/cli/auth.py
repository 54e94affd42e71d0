"""`ktp auth`: what the current user may read, what each right is for, and the manifest that adds the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from ktp.app.auth import Rights, ask_rights
from ktp.cli.options import Section, common_options, settings
from ktp.cli.options import command as ktp_command

_MODES = {
    "api": "The API, which every run asks",
    "kube-proxy": "--node-access agent",
}


@ktp_command("auth", short_help="What the current user may read, and the manifest that adds the rest.")
@common_options("--kubeconfig", "--context", "--namespace", "--node-access", Section.OUTPUT)
def command() -> int:
    """Asks the API server what these credentials may read, one line a right, and what ktp needs it for.

    \b
      ktp auth                              for questions about all namespaces
      ktp auth -n shop                      about one namespace
      ktp auth --node-access agent     also to read the nodes through the agents' pods

    If a right is missing, the smallest manifest that adds it follows, for an administrator to apply.

    Exit status: 0 nothing is missing, 1 something is, 3 the API server could not be asked.
    """
    chosen = settings()
    rights = ask_rights(chosen)
    if chosen.output == "text":
        for line in _lines(rights, chosen.node_access):
            click.echo(line)
    else:
        from ktp.render.structured import dump

        dump(_document(rights), chosen.output, sys.stdout)
    return int(rights.status)


def _lines(rights: Rights, node_access: str) -> Iterator[str]:
    yield f"{rights.user or 'The current user'} at {rights.source}"
    width = max(len(str(answer.permission)) for answer in rights.answers)
    for mode, title in _MODES.items():
        yield ""
        yield f"{title}:"
        for answer in rights.answers:
            permission = answer.permission
            if permission.mode == mode:
                word = (
                    "can" if answer.allowed else "cannot" if permission.needed else "cannot (ktp says less)"
                )
                yield f"  {permission!s:{width}}  {word:22}  {permission.purpose}"
    yield ""
    if not rights.missing:
        yield "Nothing is missing."
        if node_access != "agent" and not all(a.allowed for a in rights.answers):
            yield "`ktp auth --node-access agent` prints what reading the nodes that way needs besides."
        return
    import yaml

    yield "This adds what is missing; an administrator applies it with `kubectl apply -f -`:"
    if rights.user is None:
        yield "(put your user's name in the place of USER)"
    yield ""
    yield yaml.safe_dump_all(rights.manifest, sort_keys=False).rstrip("\n")


def _document(rights: Rights) -> dict[str, Any]:
    return {
        "apiVersion": "ktp.dev/v1",
        "kind": "Rights",
        "user": rights.user,
        "permissions": [
            {
                "mode": answer.permission.mode,
                "verb": answer.permission.verb,
                "group": answer.permission.group,
                "resource": answer.permission.resource,
                "namespace": answer.permission.namespace,
                "names": list(answer.permission.names),
                "purpose": answer.permission.purpose,
                "needed": answer.permission.needed,
                "allowed": answer.allowed,
            }
            for answer in rights.answers
        ],
        "manifest": list(rights.manifest),
    }
