#!/usr/bin/env python3
"""Runs before ktp.pyz loads anything of ktp, on whatever Python the node has."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this is the check itself
    sys.exit(
        "ktp: needs Python 3.10 or newer, and this is {}.{}; "
        "other Pythons of this machine: ls /usr/bin/python3*".format(*sys.version_info[:2])
    )
