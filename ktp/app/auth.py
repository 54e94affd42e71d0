"""`ktp auth`: what the credentials may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktp.app.settings import Settings, offline
from ktp.errors import ExitCode, UsageError
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.auth import Allowed, Permission


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the current user may do for ktp. `manifest` adds what is missing for the access mode asked about."""

    source: str
    user: str | None
    answers: tuple[Allowed, ...]
    missing: tuple[Permission, ...]
    manifest: tuple[dict[str, Any], ...]

    @property
    def status(self) -> ExitCode:
        """FINDINGS where something is missing without which ktp cannot answer, or says less."""
        return ExitCode.FINDINGS if self.missing else ExitCode.OK


def ask_rights(settings: Settings) -> Rights:
    """`ktp auth`: the rights of the current user, for the API and for --node-access agent."""
    from ktp.collect.auth import ask_permissions, manifest, permissions, who_am_i
    from ktp.collect.kube_api import connect

    if offline(settings):
        raise UsageError("ktp auth asks an API server; a snapshot has none")
    api = connect(settings.kubeconfig, settings.context)
    user = who_am_i(api)
    answers = ask_permissions(api, permissions(settings.namespace))
    # In JSON the mode keeps the name that it had before Cilium's pods were asked as well.
    modes = {"api", "kube-proxy" if settings.node_access == "agent" else settings.node_access}
    missing = tuple(a.permission for a in answers if not a.allowed and a.permission.mode in modes)
    return Rights(
        source=api.source,
        user=user.name,
        answers=answers,
        missing=missing,
        manifest=tuple(manifest(missing, user)),
    )
