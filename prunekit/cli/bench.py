"""`prunekit bench`: time a model in prunekit's engines and in other runtimes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.bench.console import print_bench
from prunekit.bench.result import BenchResult
from prunekit.bench.table import markdown, put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.console import typed_path
from prunekit.files import atomic_write_text
from prunekit.runs.finished import open_labelling


def main(arguments: Sequence[str]) -> int:
    """Measure, write raw timings and print tables and a verdict; or do so for stored ones. Return 0.

    Raises:
        ConfigError: a setting, a run, a model or a file that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("bench")
    given = parse_settings("bench", arguments)
    if given["from"] is not None:
        return print_stored(given)
    if (given["run"] is None) == (given["model"] is None) or (given["model"] is not None and given["data"] is None):
        raise ConfigError(
            "bench needs a run, or a model and its data.\n"
            "Allowed: run=<folder of a run>; model=<folder> data=<.csv, .jsonl or .parquet>; from=<file of timings>.\n"
            "As prunekit bench model=./my_model data=tickets.csv"
        )
    # all engines share the cache of compiled products of this process, where each would have one for itself elsewhere;
    # torch reads this when it first computes a product
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    run = None
    if given["run"] is not None:
        stored = "What the run measured itself is in its result.json."
        run = open_labelling(given["run"], "; bench does not measure that", stored)
    # torch takes seconds to import, and the answers above come without it
    from prunekit.bench.bench import bench
    from prunekit.bench.protocol import BenchError
    from prunekit.bench.subject import load_model, load_run

    try:
        subject = load_model(given) if run is None else load_run(run, given["examples"], given["seed"], given["data"])
        result = bench(subject, given)
    except BenchError as error:
        raise ConfigError(str(error)) from error
    out = Path(given["out"]) if given["out"] is not None else subject.place / "bench.json"
    atomic_write_text(out, json.dumps(result.to_json(), indent=1) + "\n")
    print_bench(result)
    print(f"\n raw timings: {out}\n the same again: prunekit bench from={typed_path(out)}", end="")
    print(f"\n as Markdown, with every number: prunekit bench from={typed_path(out)} into=PAGE.md")
    return DONE


def print_stored(given: Mapping[str, Any]) -> int:
    """Print tables and a verdict from stored timings, or put the whole table into a Markdown file. Return 0.

    Raises:
        ConfigError: no file of timings, or a Markdown file without the block.
    """
    path = Path(given["from"])
    try:
        result = BenchResult.from_json(json.loads(path.read_text(encoding="utf-8")))
        table = markdown(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"from={path} is no file of timings ({type(error).__name__}: {error}).\n"
            "Allowed: what prunekit bench wrote, which is bench.json by default.\nMeasure again, or give another file."
        ) from error
    if given["into"] is None:
        print_bench(result)
        return DONE
    page = Path(given["into"])
    put_table(page, table, given["block"])
    print(page)
    return DONE
