"""Requests a second and latency of `prmbench serve` on loopback, batching across requests against one at a time.

Both sides are the same command on the same tiny model, `--batching shared` and `--batching request`, asked by the same
number of clients, each over a connection of its own. Before anything is timed, a request with all solutions must give
the numbers of `prmbench score` to the last bit, on both sides; under load, the second side must repeat its own numbers,
and the first stay within rounding. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import prmbench
from prmbench import data
from prmbench.config import ScoreConfig
from prmbench.evaluation import score

DEMO_TRACES = Path(prmbench.__file__).parent / "assets" / "demo_traces.jsonl"
SIDES = ("shared", "request")
TOLERANCE = 1e-4
"""Largest difference of a probability in a batch with others from that of the idle server."""
HEADERS = {"content-type": "application/json"}
MEMORY_SAMPLES = 10


@dataclass(frozen=True)
class Server:
    """A running `prmbench serve`."""

    port: int
    process: subprocess.Popen[str]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_mib(self) -> float:
        """Resident memory of the process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 2**10


def write_model(folder: Path, width: int, layers: int) -> None:
    """Write a random token classifier with a tokenizer of bytes, and its prm.json."""
    alphabet = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet | {"<end>": len(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        num_labels=2,
    )
    transformers.LlamaForTokenClassification(shape).save_pretrained(folder)
    (folder / "prm.json").write_text(json.dumps({"backend": "token_cls", "separator": "\n\n"}), encoding="utf-8")


def solution_rows(count: int, characters: int) -> list[dict[str, Any]]:
    """Return solutions of the shipped traces, each cut to about so many characters."""
    rows = []
    for trace in data.load("processbench", DEMO_TRACES).traces[:count]:
        step = max(1, characters // (len(trace.steps) + 1))
        rows.append({"id": trace.id, "problem": trace.prompt[:step], "steps": [s[:step] for s in trace.steps]})
    return rows


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """Start the command, and stop it by SIGTERM; it must end with 0."""
    command = [sys.executable, "-m", "prmbench", "serve", "--model", str(model), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(prmbench.__file__).parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if not line.startswith("serving: "):
            sys.exit(f"the server did not start: {line}")
        try:
            yield Server(int(line.partition("127.0.0.1:")[2].partition(",")[0]), process)
        finally:
            process.terminate()
            if process.wait() != 0:
                sys.exit(f"the server ended with {process.returncode}")


def ask(connection: http.client.HTTPConnection, body: bytes) -> list[dict[str, Any]]:
    """Return the results of one request; exit when it is refused."""
    connection.request("POST", "/v1/score", body, HEADERS)
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != http.client.OK:
        sys.exit(f"status {reply.status}: {text.decode()}")
    results: list[dict[str, Any]] = json.loads(text)["results"]
    return results


def load(server: Server, bodies: Sequence[bytes], clients: int) -> tuple[float, list[float], list[list[float]]]:
    """Send all bodies at once through so many clients; return seconds, seconds of each request, and its values."""

    def client(number: int) -> list[tuple[int, float, list[float]]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        answers = []
        for index in range(number, len(bodies), clients):
            start = time.perf_counter()
            (result,) = ask(connection, bodies[index])
            answers.append((index, time.perf_counter() - start, result["values"]))
        connection.close()
        return answers

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = sorted(answer for part in pool.map(client, range(clients)) for answer in part)
    return time.perf_counter() - start, [a[1] for a in answers], [a[2] for a in answers]


def check_same(
    servers: dict[str, Server], rows: Sequence[dict[str, Any]], model: Path, clients: int, batch_tokens: int
) -> float:
    """Return the largest difference under load; exit when the numbers are not those of `prmbench score`."""
    source, out = model / "rows.jsonl", model / "scores.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score(ScoreConfig(model=str(model), data=source, out=out, batch_tokens=batch_tokens))
    wanted = [json.loads(line)["values"] for line in out.read_text(encoding="utf-8").splitlines()]
    bodies = [json.dumps(row).encode() for row in rows]
    worst = 0.0
    for side, server in servers.items():
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        if [r["values"] for r in ask(connection, json.dumps({"solutions": list(rows)}).encode())] != wanted:
            sys.exit(f"--batching {side}: other numbers than `prmbench score`; nothing was timed")
        alone = [ask(connection, body)[0]["values"] for body in bodies]
        connection.close()
        crowded = load(server, bodies, clients)[2]
        gap = max(abs(a - b) for x, y in zip(alone, crowded, strict=True) for a, b in zip(x, y, strict=True))
        if gap > (TOLERANCE if side == "shared" else 0.0):
            sys.exit(f"--batching {side}: numbers differ by {gap:.3g} under load; nothing was timed")
        worst = max(worst, gap)
    return worst


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return round(1000 * statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-requests", type=int, default=1000, help="further requests, while memory is read")
    parser.add_argument("--rows", type=int, default=32, help="different solutions among the requests")
    parser.add_argument("--characters", type=int, default=120, help="of a solution; a character is a token")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--cpu-seconds", action="store_true", help="CPU time of the servers: for shared machines")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the result."""
    write_model(folder, options.width, options.layers)
    rows = solution_rows(options.rows, options.characters)
    bodies = [json.dumps(rows[n % len(rows)]).encode() for n in range(max(options.requests, options.memory_requests))]
    budget = ("--batch-tokens", str(options.batch_tokens))
    with contextlib.ExitStack() as stack:
        servers = {side: stack.enter_context(serving(folder, "--batching", side, *budget)) for side in SIDES}
        gap = check_same(servers, rows, folder, options.clients, options.batch_tokens)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        cpu: dict[str, list[float]] = {side: [] for side in SIDES}
        latencies: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, server in servers.items():
                start_cpu = server.cpu_seconds
                seconds, each, _ = load(server, bodies[: options.requests], options.clients)
                times[side].append(seconds)
                cpu[side].append(server.cpu_seconds - start_cpu)
                latencies[side] += each
        share = -(-options.memory_requests // MEMORY_SAMPLES)
        memory = [servers["shared"].rss_mib]
        for start in range(0, options.memory_requests, share):
            load(servers["shared"], bodies[start : start + share], options.clients)
            memory.append(servers["shared"].rss_mib)
    clock = cpu if options.cpu_seconds else times
    rates = {side: options.requests / max(statistics.median(clock[side]), 1e-3) for side in SIDES}
    return {
        "benchmark": "serve_load",
        "ratio": round(rates["shared"] / rates["request"], 3),
        "ours": round(rates["shared"], 1),
        "peer": round(rates["request"], 1),
        "unit": "requests a CPU second of the server" if options.cpu_seconds else "requests/s",
        "requests_per_second": {side: round(options.requests / statistics.median(times[side]), 1) for side in SIDES},
        "rounds": options.rounds,
        "spread": {side: [round(min(t), 3), round(max(t), 3)] for side, t in clock.items()},
        "latency_ms": {side: {f"p{p}": percentile(each, p) for p in (50, 95)} for side, each in latencies.items()},
        "rss_mib": [round(mib, 1) for mib in memory],
        "memory_requests": options.memory_requests,
        "max_difference": gap,
        "clients": options.clients,
        "requests": options.requests,
        "characters": options.characters,
        "width": options.width,
        "layers": options.layers,
        "batch_tokens": options.batch_tokens,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure, and print the result."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
