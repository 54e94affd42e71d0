"""What kube-proxy makes of API objects, by version and mode: names, endpoint choice, intended outcomes. Pure.

Facts are those of kube-proxy on Linux, from `OLDEST` to `NEWEST` of `version.py`; each function names the versions that
its facts hold for.
This package knows no rules of a node beyond chain names, and no packets: that is `ktp.dataplane`.
"""
