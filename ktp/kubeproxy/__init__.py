"""What kube-proxy makes of API objects, by version and mode: names, endpoint choice, intended outcomes. Pure.

Facts are those of kube-proxy 1.18 to 1.36 on Linux; each function names the versions that its facts hold for.
This package knows no rules of a node beyond chain names, and no packets: that is `ktp.dataplane`.
"""
