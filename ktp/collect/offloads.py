"""What a node's tunnels, and the devices under them, leave to the hardware: `ethtool -k` of each."""

from __future__ import annotations

MOST_DEVICES = 16

# A tunnel and the device that it names (`dev eth1`), then those of the default routes, each once. A name that may be an
# option for ethtool is none that a network plugin gives. One line: it is also a frame's name in a node's answer.
_DEVICES = (
    "function add(d) { if (d ~ /^[A-Za-z0-9]/ && !(d in known) && n < MOST) { known[d] = 1; list[n++] = d } } "
    '{ kind = 0; name = $2; sub(/[^A-Za-z0-9_.-].*/, "", name); '
    "for (i = 3; i < NF; i++) "
    'if ($1 != "default" && $i ~ /^(vxlan|geneve|ipip|gre|gretap|sit)$/ && !kind) { kind = 1; any = 1; add(name) } '
    'else if ($i == "dev" && (kind || $1 == "default")) add($(i + 1)) } '
    "END { if (any) for (i = 0; i < n; i++) print list[i] }"
).replace("MOST", str(MOST_DEVICES))


def offload_command() -> tuple[str, ...]:
    """The command that prints `ethtool -k` of tunnels and what is under them; nothing where there is no tunnel."""
    devices = f"{{ ip -o -d link; ip -o route show default; }} 2>/dev/null | awk '{_DEVICES}'"
    return "sh", "-c", f'set -f; for d in $({devices}); do ethtool -k "$d" 2>/dev/null; done; true'
