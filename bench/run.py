#!/usr/bin/env python3
"""`make bench`: how long ktp takes where it matters, as figures and as ratios to what everybody knows.

    bench/run.py [--only rules,legacy,batch,diagnose] [--times 5] [--strict]

Each command runs several times, in turn with what it is compared with, and the best run of each counts: what else the
machine does can only add. Times are wall clock from start to end of the process, memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CASE = REPOSITORY / "tests" / "data" / "cases" / "core-1.36-iptables-nft"
KTP = (sys.executable, "-m", "ktp")
# An installed ktp has its bytecode, whatever CI wants for its own processes.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
    "PYTHONPATH": str(REPOSITORY)
}
PORT = 30007
FLOWS = 10_000


def say(line: str) -> None:
    """Print a line now, so that a long run can be watched."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class CannotMeasureError(Exception):
    """Why something is not measured here."""


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, resident MB, exit status, last line of stderr."""

    seconds: float
    megabytes: float
    status: int
    error: str


@dataclass
class Report:
    """What is printed, and whether all limits are kept."""

    kept: bool = True

    def title(self, text: str) -> None:
        """A heading."""
        say(f"\n{text}")

    def figure(self, what: str, value: str) -> None:
        """A figure without a limit."""
        say(f"  {what:<66} {value:>12}")

    def limited(
        self, what: str, value: float, limit: float, unit: str = "", *, at_least: bool = False
    ) -> None:
        """A figure with a limit."""
        good = value >= limit if at_least else value <= limit
        self.kept &= good
        word = "at least" if at_least else "at most"
        mark = "" if good else "  <-- MISSED"
        say(f"  {what:<66} {f'{value:,.2f}{unit}':>12}  ({word} {limit:,g}{unit}){mark}")


def run(command: Sequence[str]) -> Run:
    """Run one process to its end.

    Its output goes to a file: grep stops at the first match where it sees that nobody reads /dev/null.
    """
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=ENVIRONMENT
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    last = text.splitlines()[-1] if text else ""
    return Run(seconds, usage.ru_maxrss / 1024, process.returncode, last)


def best(times: int, *commands: Sequence[str]) -> list[Run]:
    """The fastest run of each command; they take turns."""
    runs = [[run(c) for c in commands] for _ in range(times)]
    out = [min(column, key=lambda r: r.seconds) for column in zip(*runs, strict=True)]
    for command, each in zip(commands, out, strict=True):
        if command[:3] == KTP and each.status not in (0, 1, 4):
            raise CannotMeasureError(f"{shlex.join(command[2:])}: exit status {each.status}: {each.error}")
    return out


def write_dump(file: Path, services: int, endpoints: int) -> tuple[int, int]:
    """Have a dump written; its lines and rules.

    By another process: a child's largest resident set starts at that of the process that starts it.
    """
    script = Path(__file__).with_name("big_rules.py")
    with file.open("wb") as stream:
        subprocess.run(
            [sys.executable, str(script), str(services), str(endpoints)],
            stdout=stream,
            env=ENVIRONMENT,
            check=True,
        )
    lines = rules = 0
    with file.open("rb") as written:
        for line in written:
            lines += 1
            rules += line.startswith(b"-A")
    return lines, rules


# --------------------------------------------------------------------------------------------------- measures


def bench_rules(report: Report, times: int, folder: Path) -> None:
    """A question to a dump of more than a million rules, against `grep -c` on the same file."""
    big, small = folder / "big.txt", folder / "small.txt"
    lines, rules = write_dump(big, 50_000, 5)
    _, few = write_dump(small, 5_000, 5)
    size = f"{lines:,} lines, {rules:,} rules, {big.stat().st_size / 1e6:.0f} MB"
    report.title(f"explain-rules on a dump ({size}), best of {times}")
    ask = (*KTP, "explain-rules", "--node-port", str(PORT), "--rules")
    answer, grep, tenth = best(
        times, (*ask, str(big)), ("grep", "-c", str(PORT), str(big)), (*ask, str(small))
    )
    report.figure(f"ktp explain-rules --node-port {PORT} --rules FILE", f"{answer.seconds:.3f} s")
    report.figure(f"grep -c {PORT} FILE", f"{grep.seconds:.3f} s")
    report.limited("ratio of the two", answer.seconds / grep.seconds, 5)
    report.limited("resident memory", answer.megabytes, 300, " MB")
    report.figure(f"the same question to {few:,} rules", f"{tenth.seconds:.3f} s")
    report.limited("ten times the rules take so many times as long", answer.seconds / tenth.seconds, 11)


# A node has an address to be asked at, and lets packets through.
NODE = (
    "ip link set lo up; ip link add eth0 type veth peer name peer; ip link set eth0 up; ip link set peer up; "
    "ip address add 10.0.0.10/24 dev eth0; ip route add default via 10.0.0.1; sysctl -qw net.ipv4.ip_forward=1;"
)


def on_a_node(folder: Path, loads: str, times: int, questions: dict[str, str]) -> dict[str, float]:
    """The fastest of each question to a node, a network namespace of its own in which `loads` has loaded the rules.

    A question named ktp or ktp… has to be answered.
    """
    if os.geteuid() != 0:
        raise CannotMeasureError("needs root, to load rules in a network namespace of its own")
    for command in ("unshare", "ip", *(word for word in loads.split() if word.startswith("iptables-"))):
        if shutil.which(command) is None:
            raise CannotMeasureError(f"needs the command {command}")
    asked = " ".join(
        f"start=$(date +%s%N); {question} >{folder}/{name}.out 2>{folder}/{name}.err; "
        f"status=$?; end=$(date +%s%N); echo {name} $((end - start)) $status;"
        for name, question in questions.items()
    )
    script = (
        f"set -e; export XTABLES_LOCKFILE={folder}/lock; {NODE} {loads}; set +e; "
        f"for turn in $(seq {times}); do {asked} done"
    )
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if done.returncode != 0:
        raise CannotMeasureError(f"the rules were not loaded: {done.stderr.strip()[-200:]}")
    seconds: dict[str, list[float]] = {name: [] for name in questions}
    for line in done.stdout.splitlines():
        name, taken, status = line.split()
        if name.startswith("ktp") and status not in ("0", "1", "4"):
            error = (folder / f"{name}.err").read_text().strip()[-200:]
            raise CannotMeasureError(f"ktp explain-rules: exit status {status}: {error}")
        seconds[name].append(int(taken) / 1e9)
    return {name: min(each) for name, each in seconds.items()}


def bench_legacy(report: Report, times: int, folder: Path) -> None:
    """A live node with 100,000 legacy rules, against grep in the same pipe."""
    dump = folder / "legacy.txt"
    _, rules = write_dump(dump, 5_200, 5)
    best_of = on_a_node(
        folder,
        f"iptables-legacy-restore {dump}",
        times,
        {
            "ktp": f"iptables-legacy-save | {shlex.join(KTP)} explain-rules --node-port {PORT} --rules -",
            "grep": f"iptables-legacy-save | grep {PORT}",
        },
    )
    report.title(f"a node with {rules:,} legacy rules (network namespace), best of {times}")
    report.figure(
        f"iptables-legacy-save | ktp explain-rules --node-port {PORT} --rules -", f"{best_of['ktp']:.3f} s"
    )
    report.figure(f"iptables-legacy-save | grep {PORT}", f"{best_of['grep']:.3f} s")
    report.limited("ratio of the two", best_of["ktp"] / best_of["grep"], 1.5)


WHOLE_NODE = "from ktp.collect.local_node import collect_local_node; collect_local_node('n')"


def bench_nft(report: Report, times: int, folder: Path) -> None:
    """A live node with 100,000 rules in nf_tables, against the whole dump and grep."""
    dump = folder / "nft.txt"
    _, rules = write_dump(dump, 5_200, 5)
    best_of = on_a_node(
        folder,
        f"iptables-nft-restore {dump}",
        times,
        {
            "ktp": f"{shlex.join(KTP)} explain-rules --node-port {PORT}",
            "grep": f"iptables-nft-save | grep {PORT}",
            "ktp-whole": shlex.join((sys.executable, "-c", WHOLE_NODE)),
        },
    )
    report.title(f"a node with {rules:,} rules in nf_tables (network namespace), best of {times}")
    report.figure(f"ktp explain-rules --node-port {PORT}, on the node", f"{best_of['ktp']:.3f} s")
    report.figure(f"iptables-nft-save | grep {PORT}", f"{best_of['grep']:.3f} s")
    report.limited(
        "the one is so many times as fast as the other", best_of["grep"] / best_of["ktp"], 20, at_least=True
    )
    report.figure("all of the node, as ktp snapshot reads it", f"{best_of['ktp-whole']:.3f} s")
    report.limited("the same, of iptables-nft-save", best_of["ktp-whole"] / best_of["grep"], 0.8)


def bench_million(report: Report, times: int, folder: Path) -> None:
    """Nodes with more than a million rules in nf_tables, which take minutes to load: of many Services, and of few."""
    for services, endpoints in ((60_000, 5), (10_000, 34)):
        dump = folder / "million.txt"
        _, rules = write_dump(dump, services, endpoints)
        question = {"ktp": f"{shlex.join(KTP)} explain-rules --node-port {PORT}"}
        best_of = on_a_node(folder, f"iptables-nft-restore {dump}", times, question)
        report.title(f"a node with {rules:,} rules in nf_tables, of {services:,} Services, best of {times}")
        report.limited(f"ktp explain-rules --node-port {PORT}, on the node", best_of["ktp"], 1, " s")


def bench_batch(report: Report, times: int, folder: Path) -> None:
    """Many flows through the nodes of a recorded cluster, on one core."""
    probes = json.loads((CASE / "probes.json").read_text())
    flows = [_flow(number, probes[number % len(probes)]) for number in range(FLOWS)]
    file = folder / "flows.jsonl"
    file.write_text("".join(json.dumps(f) + "\n" for f in flows))
    different = len({json.dumps({**f, "id": 0}) for f in flows})
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        report.title(
            f"trace --batch, {FLOWS:,} flows ({different} different ones) on {CASE.name}, one core, best of {times}"
        )
        whole = best(times, (*KTP, "trace", "--batch", str(file), "--snapshot", str(CASE)))[0]
        report.figure("ktp trace --batch FILE, from start to end", f"{whole.seconds:.2f} s")
        report.limited("flows a second", FLOWS / whole.seconds, 2000, at_least=True)
        report.figure("resident memory", f"{whole.megabytes:.0f} MB")
        rate = max(_rate_without_memory(file) for _ in range(times))
        report.limited("flows a second where no answer is remembered (CPU time)", rate, 2000, at_least=True)
    finally:
        os.sched_setaffinity(0, cores)


def _flow(number: int, probe: dict[str, object]) -> dict[str, object]:
    flow = {"id": number, "to": probe["dst"], "port": probe["port"], "protocol": probe["proto"]}
    if probe["kind"] != "node":
        flow["from"] = probe["src_ip"]
    if probe["kind"] != "external":
        flow["from_node"] = probe["vantage_node"]
    if probe.get("via"):
        flow["via"] = probe["via"]
    return flow


WITHOUT_MEMORY = """
import sys, time
from ktp.app.trace import FlowBatch
from ktp.collect.snapshot import open_snapshot
from ktp.parse.snapshot import parse_snapshot
lines = open(sys.argv[1], "rb").read().splitlines()
batch = FlowBatch(parse_snapshot(open_snapshot(sys.argv[2])), remember=False)
start = time.process_time()
for line in lines:
    batch.answer(line)
print(len(lines) / (time.process_time() - start))
"""


def _rate_without_memory(file: Path) -> float:
    command = [sys.executable, "-c", WITHOUT_MEMORY, str(file), str(CASE)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    return float(done.stdout)


def bench_diagnose(report: Report, times: int, _folder: Path) -> None:
    """Every Service of a recorded cluster."""
    command = (*KTP, "diagnose", "svc", "-A", "--snapshot", str(CASE))
    answer = best(times, command)[0]
    services = len(json.loads((CASE / "cluster" / "services.json").read_text())["items"])
    report.title(f"diagnose svc -A, {services} Services on {CASE.name}, best of {times}")
    report.figure("ktp diagnose svc -A", f"{answer.seconds:.2f} s")
    report.figure("resident memory", f"{answer.megabytes:.0f} MB")


def bench_nodes(report: Report, times: int, folder: Path) -> None:
    """One Service on ever more nodes: by the API objects alone, and with the rules of all of them."""
    here = Path(__file__).parent
    report.title(f"diagnose svc NAME, policy Local, best of {min(times, 3)}")
    for words, sizes, script, name in (
        ("by the API alone", (100, 300, 1_000), "large_cluster.py", "team-80/app-00080"),
        ("with all rules", (30, 100), "many_nodes.py", "test/nginx-externaltrafficpolicy"),
    ):
        took: list[float] = []
        for nodes in sizes:
            out = folder / f"{script}-{nodes}"
            size = (str(out), "--nodes", str(nodes), "--services", "200", "--endpoints", "1000")
            more = size if script == "large_cluster.py" else (str(out), str(nodes))
            subprocess.run([sys.executable, str(here / script), *more], env=ENVIRONMENT, check=True)
            answer = best(min(times, 3), (*KTP, "diagnose", "svc", name, "--snapshot", str(out)))[0]
            report.figure(f"{nodes} nodes, {words}", f"{answer.seconds:.2f} s {answer.megabytes:.0f} MB")
            took.append(answer.seconds)
        report.limited(
            f"{sizes[-1] / sizes[-2]:.1f} times the nodes take so many times as long",
            took[-1] / took[-2],
            1.3 * sizes[-1] / sizes[-2],
        )


MEASURES: dict[str, Callable[[Report, int, Path], None]] = {
    "rules": bench_rules,
    "legacy": bench_legacy,
    "nft": bench_nft,
    "batch": bench_batch,
    "diagnose": bench_diagnose,
    "nodes": bench_nodes,
}
# Measured only where it is asked for by name.
LONG: dict[str, Callable[[Report, int, Path], None]] = {"million": bench_million}


def main() -> int:
    """1 where --strict was asked for and a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = MEASURES | LONG
    parser.add_argument(
        "--only", default=",".join(MEASURES), help=f"measures, joined by commas: {', '.join(known)}"
    )
    parser.add_argument("--times", type=int, default=5, help="how often each command runs")
    parser.add_argument("--strict", action="store_true", help="end with 1 where a limit is missed")
    arguments = parser.parse_args()
    names: Iterable[str] = arguments.only.split(",")
    report = Report()
    say(
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores"
    )
    for name in names:
        if name not in known:
            parser.error(f"there is no measure {name!r}; there are {', '.join(known)}")
        with tempfile.TemporaryDirectory(prefix="ktp-bench-") as folder:
            try:
                known[name](report, arguments.times, Path(folder))
            except CannotMeasureError as why:
                report.title(f"{name}: not measured: {why}")
    return 1 if arguments.strict and not report.kept else 0


if __name__ == "__main__":
    sys.exit(main())
