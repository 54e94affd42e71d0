"""What the kernel does with a packet: hooks, tables, chains, routing, conntrack, from node to node.

Knows no Kubernetes. Pure: no input or output. Written after the Linux sources (6.x) of net/netfilter, net/ipv4 and
net/ipv6; each rule that is not obvious names the function it follows.
"""
