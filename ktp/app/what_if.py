"""`ktp what-if`: the matrix before and after a change."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from ktp.app.evidence import snapshot_for_service
from ktp.app.settings import Settings
from ktp.errors import ExitCode

if TYPE_CHECKING:
    from ktp.model.change import Change


def what_if_service(settings: Settings, name: str, changes: list[Change]) -> ExitCode:
    """The matrix before and after the changes, to stdout; the exit status."""
    from ktp.diagnose.whatif import what_if

    snapshot, service = snapshot_for_service(settings, name)
    answer = what_if(snapshot, service, changes, nodes=settings.nodes)
    if settings.output in ("json", "yaml"):
        from ktp.render.structured import dump
        from ktp.render.whatif import what_if_object

        dump(what_if_object(answer), settings.output, sys.stdout)
    else:
        from ktp.render.terminal import make_console
        from ktp.render.whatif import print_what_if

        if settings.output == "text":
            print_what_if(answer, make_console(settings.color, sys.stdout))
        else:
            from ktp.render.document import WIDTH, document

            page = io.StringIO()
            print_what_if(answer, make_console("never", page, width=WIDTH))
            sys.stdout.write(document(page.getvalue(), f"What if: {answer.before.key}", settings.output))
    return ExitCode.FINDINGS if answer.darkens else ExitCode.OK
