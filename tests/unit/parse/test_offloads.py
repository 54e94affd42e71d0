"""`ethtool -k` as ethtool prints it."""

from __future__ import annotations

import pytest

from ktp.errors import EvidenceError
from ktp.parse.offloads import parse_offloads

TEXT = """Features for eth0:
rx-checksumming: on
tx-checksumming: on
\ttx-checksum-ipv4: off [fixed]
\ttx-checksum-ip-generic: on
scatter-gather: off [requested on]
Features for flannel.1:
tx-checksumming: off
\ttx-checksum-ip-generic: off [not requested]

Offload parameters for eth9:
generic-receive-offload: on
"""


def test_features_of_several_devices() -> None:
    assert parse_offloads(TEXT) == {
        "eth0": {
            "rx-checksumming": True, "tx-checksumming": True, "tx-checksum-ipv4": False, "tx-checksum-ip-generic": True,
            "scatter-gather": False,
        },
        "flannel.1": {"tx-checksumming": False, "tx-checksum-ip-generic": False},
        "eth9": {"generic-receive-offload": True},
    }  # fmt: skip
    assert parse_offloads("") == {}


@pytest.mark.parametrize("text", ["tx-checksumming: on", "Features for eth0:\nCannot get device features"])
def test_what_is_none_is_named(text: str) -> None:
    with pytest.raises(EvidenceError, match=r"ethtool.txt line \d is no feature"):
        parse_offloads(text)
