"""How a served model answers under load, on this machine: requests per second, latencies, batch sizes.

python benchmarks/serving.py run=runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash> 'server=[threads=1]'
python benchmarks/serving.py                        # the table of docs/serving.md again, from what is stored

The server is `prunekit serve` in a process of its own; this one asks, over loopback, with keep-alive. In a closed loop
a client asks again as soon as it is answered. Requests that arrive at random (Poisson) do not wait for each other, and
their times count from the moment they were due. Under attack (attacks.py, in a third process), such requests of many
clients are compared with the same ones without an attack, in rounds: what else the machine does meets both.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from prunekit.bench.table import put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.environment import environment
from prunekit.files import atomic_write_text
from prunekit.runs.finished import FinishedRun, open_run
from prunekit.runtime.tally import percentile_ms

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
ATTACKS = Path(__file__).with_name("attacks.py")
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 3
PATIENCE_S = 120.0  # of a client; longer than the server's
ENDING_S = 60.0  # for the server to finish its queue
KEPT = ("server", "seconds", "texts", "seed", "attacked_s", "rounds", "others")  # settings that are stored
HOLD_S = 1.5  # in which an attack takes hold, before it is counted
CALM_S = 0.5  # after it, in which the server gets rid of it


@dataclass
class Heard:
    """Times and errors of requests that were due in the counted time, and how many were answered within it."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)  # by status, or by the name of the exception
    answers: int = 0
    texts: int = 0  # in these answers
    tokens: int = 0


Ask = Callable[[float], Awaitable[None]]


# -- loads ---------------------------------------------------------------------------------------------------


async def closed_loop(ask: Ask, clients: int, until: float) -> None:
    """So many clients, each asking again as soon as it is answered, until a time of the event loop."""
    loop = asyncio.get_running_loop()

    async def client() -> None:
        while loop.time() < until:
            await ask(loop.time())

    await asyncio.gather(*(client() for _ in range(clients)))


async def arrivals(ask: Ask, per_s: float, until: float, rng: random.Random) -> None:
    """Requests at random times, so many per second on average, whatever became of those before."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(per_s)) < until:
            await asyncio.sleep(due - loop.time())
            group.create_task(ask(due))


async def measured(
    client: httpx2.AsyncClient,
    requests: Iterator[bytes],
    seconds: float,
    load: Callable[[Ask, float], Awaitable[None]],
    askers: Sequence[httpx2.AsyncClient] = (),
) -> dict[str, Any]:
    """What came of a load that lasted so many seconds, and what the server says that it did meanwhile.

    Each request is one of the askers', by chance; without any, the client's.
    """
    loop, chance = asyncio.get_running_loop(), random.Random(0)
    heard = Heard()
    before, cpu = await stats(client), time.process_time()
    start = loop.time()
    counted_from = start + seconds / 10
    until = counted_from + seconds

    async def ask(due: float) -> None:
        try:
            asker = chance.choice(askers) if askers else client
            answer = await asker.post("/predict", content=next(requests))
            outcome = str(answer.status_code)
        except httpx2.HTTPError as error:
            answer, outcome = None, type(error).__name__
        now = loop.time()
        if answer is None or answer.status_code != 200:
            heard.errors[outcome] += due >= counted_from
            await asyncio.sleep(0.05)  # who is turned away does not come again at once
            return
        if due >= counted_from:
            heard.seconds.append(now - due)
        if counted_from <= now < until:
            found = answer.json()["predictions"]
            heard.answers += 1
            heard.texts += len(found)
            heard.tokens += sum(one["tokens"] for one in found)

    await load(ask, until)
    spent = loop.time() - start
    after, cpu = await stats(client), time.process_time() - cpu
    batches = after["batches"] - before["batches"]
    ordered = sorted(heard.seconds)
    return {
        "timed": len(ordered),
        "errors": {name: count for name, count in heard.errors.items() if count},
        "requests_per_s": heard.answers / seconds,
        "texts_per_s": heard.texts / seconds,
        "tokens_per_text": heard.tokens / heard.texts if heard.texts else None,
        "latency_ms": {f"p{percent}": percentile_ms(ordered, percent) for percent in (50, 95, 99)},
        "mean_batch_texts": (after["texts"] - before["texts"]) / batches if batches else None,
        "server_computing": (after["computing_s"] - before["computing_s"]) / spent,
        "client_cpu": cpu / spent,
        "memory_mb": await memory_mb(client),
    }


async def stats(client: httpx2.AsyncClient) -> dict[str, Any]:
    """What the server's only model did since its start."""
    (found,) = (await client.get("/stats")).json()["models"].values()
    return dict(found)


async def memory_mb(client: httpx2.AsyncClient) -> float:
    """Resident memory of the server."""
    (size,) = re.findall(r"^prunekit_resident_memory_bytes (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return float(size) / 1e6


# -- the server ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(run: FinishedRun, given: Mapping[str, Any]) -> AsyncIterator[str]:
    """The address of a server of this run, which ends with the block.

    Raises:
        ConfigError: it did not start; what it said is on stderr.
    """
    words = ["-m", "prunekit", "serve", f"run={run.path}", "port=0", "cut=true", *given["server"]]
    child = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        try:
            line = (await asyncio.wait_for(child.stdout.readline(), given["start_s"])).decode()
        except TimeoutError:
            line = ""
        address = re.search(r"http://\S+", line)
        if address is None:
            raise ConfigError(
                f"the server did not start within {given['start_s']:g} s, or ended; it was\n"
                f"prunekit serve run={run.path} port=0 cut=true {' '.join(given['server'])}\n"
                "See what it wrote above, or try that command by itself."
            )
        yield address[0]
    finally:
        await end(child)


@asynccontextmanager
async def attacked(name: str, address: str) -> AsyncIterator[str]:
    """What an attack is, for a block during which a process attacks; at first there is time for it to take hold."""
    words = [sys.executable, str(ATTACKS), name, address.rpartition(":")[2]]
    child = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        what = (await child.stdout.readline()).decode().strip()
        await asyncio.sleep(HOLD_S)
        yield what
        if child.returncode is not None:
            raise ConfigError(f"the attack {name} ended.\nAllowed: one that goes on.\nSee what it wrote above.")
    finally:
        await end(child)


async def end(child: asyncio.subprocess.Process) -> None:
    """Terminate a process, and kill it if it does not end."""
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), ENDING_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def bodies(run: FinishedRun, count: int, seed: int) -> Iterator[bytes]:
    """Requests of so many validation texts of the run each, in a random order, again and again."""
    from prunekit.data.reading import read_task
    from prunekit.runs.kinds import kind_of

    rows = read_task(run.spec, kind_of(run.cfg).source(run.spec)).splits["validation"]
    texts: list[Any] = list(rows.texts) if rows.pairs is None else list(zip(rows.texts, rows.pairs, strict=True))
    texts = [text for text in texts if all(part.strip() for part in ([text] if isinstance(text, str) else text))]
    random.Random(seed).shuffle(texts)
    endless = cycle(texts)
    while True:
        yield json.dumps({"texts": list(islice(endless, count))}).encode()


async def measure(run: FinishedRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """All loads, one after the other, on one server."""
    requests = bodies(run, given["texts"], given["seed"])
    attacks: list[str] = given["attacks"]
    loads: list[dict[str, Any]] = []
    load_before = os.getloadavg()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(run, given))

        async def opened() -> httpx2.AsyncClient:
            client = httpx2.AsyncClient(
                base_url=address, limits=limits, timeout=PATIENCE_S, trust_env=False, verify=False
            )
            return await stack.enter_async_context(client)

        client = await opened()
        askers = [await opened() for _ in range(given["others"] if attacks else 0)]
        (about,) = (await client.get("/models")).json()["models"].values()
        started_mb = await memory_mb(client)

        async def timed(
            load: Callable[[Ask, float], Awaitable[None]],
            what: Mapping[str, Any],
            seconds: float = given["seconds"],
            askers: Sequence[httpx2.AsyncClient] = (),
        ) -> None:
            loads.append({**what, **await measured(client, requests, seconds, load, askers)})
            print(f"  {name_of(loads[-1])}: {loads[-1]['requests_per_s']:.1f} requests/s", flush=True)

        def at_random(per_s: float) -> Callable[[Ask, float], Awaitable[None]]:
            # the same arrivals each time
            return lambda ask, until: arrivals(ask, per_s, until, random.Random(given["seed"]))

        for clients in given["clients"]:
            what: dict[str, Any] = {"kind": "closed", "clients": clients}
            await timed(lambda ask, until, n=clients: closed_loop(ask, n, until), what)
        most = max((load["requests_per_s"] for load in loads), default=0.0)
        for share in given["shares"] if most else []:
            await timed(at_random(share * most), {"kind": "random", "share": share, "asked_per_s": share * most})
        share = given["attacked_share"]
        for number in range(given["rounds"] if most and attacks else 0):
            what = {"kind": "attack", "round": number, "share": share, "asked_per_s": share * most}
            load, seconds = at_random(share * most), given["attacked_s"]
            await timed(load, what | {"attack": None}, seconds, askers)
            for name in attacks:
                async with attacked(name, address) as attack:
                    await timed(load, what | {"attack": attack}, seconds, askers)
                await asyncio.sleep(CALM_S)
    around = environment()
    return {
        "schema": SCHEMA,
        **{name: about[name] for name in ("task", "method", "hash", "dtype", "max_length")},
        "budget": run.result.budget.reached,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {name: around[name] for name in ("cpu", "cpus")},
        "versions": {name: around["versions"].get(name) for name in ("prunekit", "torch", "transformers")},
        "load_average": {"before": load_before[0], "after": os.getloadavg()[0]},
        "started_mb": started_mb,
        "settings": {name: given[name] for name in KEPT},
        "loads": loads,
    }


# -- the table -----------------------------------------------------------------------------------------------


def name_of(load: Mapping[str, Any]) -> str:
    """A load, as the table calls it."""
    if load["kind"] == "closed":
        return "1 client" if load["clients"] == 1 else f"{load['clients']} clients"
    if load["kind"] == "attack":
        return load["attack"] or "no attack"
    return f"at random, {load['asked_per_s']:.1f} per s"


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The tables of stored results; a sentence where there are none."""
    if not results:
        return "Not measured yet.\n"
    return "\n".join(_table(result) for result in results)


def _table(result: Mapping[str, Any]) -> str:
    budget = result["budget"]
    fewer = f", {budget:.2f}x fewer FLOPs" if budget and result["method"] != "dense" else ""
    settings = " ".join(result["settings"]["server"]) or "its defaults"
    lengths = [load["tokens_per_text"] for load in result["loads"] if load["tokens_per_text"]]
    texts = result["settings"]["texts"]
    lines = [
        f"**{result['method']} on {result['task']}{fewer}**, {result['dtype']}; {texts} text{'s' * (texts > 1)} in a "
        f"request, {sum(lengths) / max(1, len(lengths)):.0f} tokens on average, cut at {result['max_length']}; "
        f"server: {settings}",
        "",
        "| load | requests/s | p50 ms | p95 ms | p99 ms | texts per batch | computing | memory MB | errors |",
        "|---" + "|---:" * 8 + "|",
    ]
    for load in result["loads"]:
        if load["kind"] != "attack":
            batch = "-" if load["mean_batch_texts"] is None else f"{load['mean_batch_texts']:.1f}"
            cells = [*_cells(load), batch, f"{100 * load['server_computing']:.0f} %", f"{load['memory_mb']:.0f}"]
            lines.append(f"| {' | '.join([*cells, _errors(load)])} |")
    lines += _attacked(result)
    machine, average = result["hardware"], result["load_average"]
    lines += [
        "",
        f"{machine['cpus']} cores of {machine['cpu']}, load average {average['before']:.1f} before; {result['date']}, "
        f"{result['settings']['seconds']:g} s per load where nothing else is said; the clients ran on the same "
        "machine, and took time from the server's cores. Memory is the server's, after the load, "
        f"{result['started_mb']:.0f} MB at the start.",
        "",
    ]
    return "\n".join(lines)


def _attacked(result: Mapping[str, Any]) -> list[str]:
    """The lines on attacks: medians over the rounds, and the p99 as a multiple of that without an attack."""
    by_attack: dict[str, list[Mapping[str, Any]]] = {}
    for load in result["loads"]:
        if load["kind"] == "attack":
            by_attack.setdefault(name_of(load), []).append(load)
    if not by_attack:
        return []
    (quiet, *_), settings = by_attack.values(), result["settings"]
    rounds = f"{len(quiet)} round{'s' * (len(quiet) > 1)}"
    lines = [
        "",
        f"Under attack, {quiet[0]['asked_per_s']:.1f} requests per s at random from {settings['others']} other "
        f"clients; medians over {rounds}, in each of which these loads of {settings['attacked_s']:g} s took turns:",
        "",
        "| attack | requests/s | p50 ms | p95 ms | p99 ms | times the p99 without | memory MB | errors |",
        "|---" + "|---:" * 7 + "|",
    ]
    before = _median(load["latency_ms"]["p99"] for load in quiet)
    for name, loads in by_attack.items():
        rate, memory = (_median(load[key] for load in loads) for key in ("requests_per_s", "memory_mb"))
        times = [_median(load["latency_ms"][key] for load in loads) for key in ("p50", "p95", "p99")]
        ratio = f"{times[-1] / before:.2f}" if before and times[-1] else "-"
        errors = sum((Counter(load["errors"]) for load in loads), Counter())
        cells = [name, f"{rate:.1f}", *map(_whole, times), ratio, _whole(memory), _errors({"errors": errors})]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _cells(load: Mapping[str, Any]) -> list[str]:
    return [name_of(load), f"{load['requests_per_s']:.1f}", *map(_whole, load["latency_ms"].values())]


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _errors(load: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(load["errors"].items())) or "none"


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("serving_*.json"))]


def main(arguments: Sequence[str]) -> int:
    """Measures, stores and writes the table. Returns 0.

    Raises:
        ConfigError: a setting, a run or a server that cannot be.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    folder = RESULTS
    if given["run"] is not None:
        result = asyncio.run(measure(open_run(given["run"]), given))
        name = "serving_{task}_{method}_{dtype}.json".format(**result)
        out = Path(given["out"]) if given["out"] is not None else RESULTS / name
        folder = out.parent
        atomic_write_text(out, json.dumps(result, indent=1) + "\n")
        print(f"{_table(result)}\nstored: {out}")
    page = ROOT / given["into"]
    put_table(page, markdown(stored(folder)), "serving")
    print(page)
    return DONE


if __name__ == "__main__":
    run_script(main)
