"""The errors that ktp tells its user about, and the exit status each of them means.

A fault of the cluster is a finding and missing optional evidence is an `EvidenceGap`; an exception of this
module is raised only where ktp cannot go on. `ktp.cli` alone catches them.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of every command, the same for every output format (design §5)."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    EVIDENCE = 3
    UNDETERMINED = 4
    BUG = 70
    INTERRUPTED = 130


class KtpError(Exception):
    """What the user is told instead of an answer.

    `message` is one sentence without a full stop that says what is wrong; `hint`, where there is one, says
    what to do about it.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KtpError):
    """What was asked for makes no sense: an option, a file name or an object name is wrong."""

    exit_code = ExitCode.USAGE


class NotFoundError(UsageError):
    """A Service, namespace or Node that was asked for by name does not exist.

    `near` holds the names that do exist and look like it, best first.
    """

    def __init__(self, message: str, *, hint: str | None = None, near: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.near = near


class EvidenceError(KtpError):
    """Evidence without which there is no answer could not be had."""

    exit_code = ExitCode.EVIDENCE


class SnapshotError(EvidenceError):
    """A snapshot is missing, unreadable, damaged or not a snapshot."""


class KubeConfigError(EvidenceError):
    """No usable configuration for the API server was found."""


class ApiError(EvidenceError):
    """The API server gave no usable answer."""


class ApiUnreachableError(ApiError):
    """No connection to the API server, or no answer in time."""


class ApiTlsError(ApiError):
    """The TLS handshake with the API server failed."""


class ApiUnauthorizedError(ApiError):
    """The API server does not accept the credentials (401)."""


class ApiForbiddenError(ApiError):
    """The credentials are good, but may not read this (403).

    `verb`, `resource` (with its API group, as `kubectl auth can-i` spells it) and `namespace` name the
    missing permission; `namespace` is None for a read across the whole cluster.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, verb: str, resource: str, namespace: str | None
    ) -> None:
        super().__init__(message, hint=hint)
        self.verb = verb
        self.resource = resource
        self.namespace = namespace


class ApiNotFoundError(ApiError):
    """The API server knows no such path or object (404)."""


class ApiAnswerError(ApiError):
    """The answer is not one that an API server gives, or stayed an error after every retry.

    `status` is the HTTP status, or None where the answer broke off.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
