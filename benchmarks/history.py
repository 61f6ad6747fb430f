"""Runs a benchmark and adds its ratios to the history: `python benchmarks/history.py grpo_step --updates 4`.

`benchmarks/history.jsonl` has one line a run: the ratios, the commit and the machine. HISTORY.md and a table of the
newest runs in docs/performance.md are made from it; without a benchmark this script only writes these. What the
benchmark prints is printed, its result last.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prmbench.core import provenance

FOLDER = Path(__file__).parent
LINES, PAGE, DOCS = FOLDER / "history.jsonl", FOLDER / "HISTORY.md", FOLDER.parent / "docs" / "performance.md"
BEGIN, END = "<!-- begin newest runs -->", "<!-- end newest runs -->"
MARK = "<!-- numbers: measured: benchmarks/history.jsonl -->"
HEAD = """# History of the benchmarks

One row a run of `make bench`; made from `history.jsonl` by `python benchmarks/history.py`. What a ratio means stands in
[README.md](README.md). A commit with `+` had changes that were not committed. Load is the machine's average of the last
minute before the run: compare rows whose load is far below the number of cores.
"""
SETTINGS = ("model", "traces", "shape", "rows", "updates", "batch_tokens", "dtype", "threads", "clock", "rounds")
"""What of a result says what was measured."""


def machine() -> dict[str, Any]:
    """Return the machine's description, with its load before the benchmark."""
    import torch

    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_name(Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's name with its model number, since many names are as general as `Intel Xeon`."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines[:20])}
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} (model {fields['model']})" if "model" in fields else name


def ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a result's ratios and shares by name; those of parts get the part's name after a point."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if "ratio" in key or key == "matmul_share":
            parts = {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, Mapping) else {key: value}
            found |= {name: float(number) for name, number in parts.items()}
    return found


def record(result: Mapping[str, Any], arguments: Sequence[str], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a run."""
    commit, is_dirty = provenance.code_state()
    return {
        "benchmark": result["benchmark"],
        "arguments": list(arguments),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        "dirty": is_dirty,
        "ratios": ratios(result),
        "settings": {name: result[name] for name in SETTINGS if name in result},
        "machine": dict(described),
    }


def page(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the page of the history: a table for each benchmark and its arguments, newest rows last."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(" ".join([line["benchmark"], *line["arguments"]]), []).append(line)
    parts = [HEAD]
    if not groups:
        parts.append("No run yet.\n")
    for title, rows in sorted(groups.items()):
        names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
        header = ["date", "commit", *names, "machine", "load"]
        cells = [
            [row["date"], _commit(row), *(_number(row["ratios"].get(name)) for name in names), *_place(row)]
            for row in rows
        ]
        table = [header, ["---", "---", *("---:" for _ in names), "---", "---:"], *cells]
        parts.append(f"## {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table))
    return "\n".join(parts)


def rewritten(text: str, lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the page of the docs with the newest run of each benchmark."""
    newest = {" ".join([line["benchmark"], *line["arguments"]]): line for line in lines}
    table = ["| benchmark | ratio | date | commit | machine |", "|---|---:|---|---|---|"]
    for title, row in sorted(newest.items()):
        parts = {name.partition(".")[2]: v for name, v in row["ratios"].items() if re.match(r"ratio(\.|$)", name)}
        shown = ", ".join(f"{part} {_number(value)}".strip() for part, value in parts.items())
        cells = [f"`{title}`", shown, row["date"][:10], _commit(row), f"{_place(row)[0]} {MARK}"]
        table.append(f"| {' | '.join(cells)} |")
    before, _, rest = text.partition(f"{BEGIN}\n")
    body = "\n".join(table) if newest else "No run yet: `make bench` fills this table."
    return f"{before}{BEGIN}\n{body}\n{END}{rest.partition(END)[2]}"


def _commit(row: Mapping[str, Any]) -> str:
    return (row["commit"] or "unknown")[:7] + "+" * bool(row["dirty"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    m = row["machine"]
    hardware = m["gpu"] or f"{m['cores']} cores, {m['cpu']}, {m['memory_gib']:g} GiB"
    return f"{hardware}, torch {m['torch']}", f"{m['load']:g}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the runs so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a benchmark, and add its result; return its exit code."""
    described = machine()
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        line = record(json.loads(done.stdout.splitlines()[-1]), arguments, described)
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return done.returncode


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark that is named, if one is, and write the page."""
    if arguments and not (FOLDER / f"{arguments[0]}.py").is_file():
        print(f"history: there is no benchmark {arguments[0]} in {FOLDER}", file=sys.stderr)
        return 2
    code = run(arguments[0], arguments[1:]) if arguments else 0
    lines = read_lines(LINES)
    PAGE.write_text(page(lines), encoding="utf-8")
    DOCS.write_text(rewritten(DOCS.read_text(encoding="utf-8"), lines), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
