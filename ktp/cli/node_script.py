"""`ktp node-script`: what reads a node, as a file for those who can only hand one to somebody."""

from __future__ import annotations

import sys

from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, settings
from ktp.errors import ExitCode


@ktp_command("node-script", short_help="The script that reads a node, to be run by somebody else.")
@common_options("--sudo", "--timeout")
def command() -> int:
    """Prints a POSIX shell script that reads a node and prints what it found.

    \b
      ktp node-script > read.sh          give it to somebody who can log in
      sudo sh read.sh > node-b.ktp       on the node: it writes nothing else, and changes nothing
      ktp snapshot import objects.yaml node-b.ktp OUT

    With --sudo the script asks for root's rights itself (sudo -n). The Kubernetes objects come from
    kubectl get services,endpointslices,pods,nodes -A -o yaml.

    Exit status: 0.
    """
    from ktp.collect.remote_script import build_script

    chosen = settings()
    script = build_script(sudo=chosen.sudo, reach=None, command_timeout=chosen.timeout)
    sys.stdout.write(
        "#!/bin/sh\n# Reads this node for ktp: sudo sh read.sh > node.ktp. It changes nothing.\n"
    )
    sys.stdout.write(script.text.decode())
    return int(ExitCode.OK)
