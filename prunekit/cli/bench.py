"""`prunekit bench`: time a model in prunekit's engines and in the peers'."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.bench.bench import bench
from prunekit.bench.subject import _benched, _of_model, _of_run
from prunekit.bench.table import markdown, put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.files import atomic_write_text

if TYPE_CHECKING:
    pass


def main(arguments: Sequence[str]) -> int:
    """Measures, writes raw timings and prints the table; or prints the table of stored ones. Returns 0.

    Raises:
        ConfigError: a setting, a run, a model or a file that cannot be.
    """
    if asks_for_help(arguments):
        return print_help("bench")
    given = parse_settings("bench", arguments)
    if given["from"] is not None:
        return _again(given)
    if (given["run"] is None) == (given["model"] is None) or (given["model"] is None) != (given["data"] is None):
        raise ConfigError(
            "bench needs a run, or a model and its data.\n"
            "Allowed: run=<folder of a run>; model=<folder> data=<.csv, .jsonl or .parquet>; from=<file of timings>.\n"
            "As prunekit bench model=./my_model data=tickets.csv"
        )
    # all engines share this process's cache of compiled products, which each would have for itself elsewhere; torch
    # reads this when it first computes one
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    run = None if given["run"] is None else _benched(given["run"])  # refused before anything slow is imported
    from prunekit.bench.protocol import BenchError
    from prunekit.data.spec import DataError

    try:
        subject = _of_model(given) if run is None else _of_run(run, given)
        result = bench(subject, given)
    except ConfigError:
        raise
    except (DataError, BenchError) as error:
        raise ConfigError(str(error)) from error
    out = Path(given["out"]) if given["out"] is not None else subject.place / "bench.json"
    atomic_write_text(out, json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    print(f"raw timings: {out}; the table again: prunekit bench from={out}")
    return DONE


def _again(given: Mapping[str, Any]) -> int:
    path = Path(given["from"])
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        table = markdown(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"from={path} is no file of timings ({type(error).__name__}: {error}).\n"
            "Allowed: what prunekit bench wrote, bench.json unless told.\nMeasure again, or give another file."
        ) from error
    if given["into"] is None:
        print(table)
        return DONE
    target = Path(given["into"])
    put_table(target, table, given["block"])
    print(target)
    return DONE
