"""`prunekit predict`: apply a run's pruned model to the texts of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.data.folders import why_no_file
from prunekit.runs.finished import open_labelling

FORMATS = (".csv", ".jsonl")


def main(arguments: Sequence[str]) -> int:
    """Predict every row of a file, write them, and print how many there were. Return 0.

    Raises:
        ConfigError: a setting, a run, a file or a column that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("predict")
    given = parse_settings("predict", arguments)
    in_python = "Give such a run, or use prunekit.load(...) in Python."
    run = open_labelling(given["run"], "; predict does not do that", in_python, words=True)
    data, out = _files(given["data"], given["out"])
    if run.spec.kind.labels_words and out.suffix.lower() != ".jsonl":
        raise ConfigError(
            f"out={out}, but run={given['run']} {run.spec.kind.does}, a list per row.\nAllowed: .jsonl.\n"
            f"Type out={out.with_suffix('.jsonl')}"
        )
    columns = {"text": given["text"] or run.spec.text}
    if run.spec.text_pair is not None:
        columns["text_pair"] = given["text_pair"] or run.spec.text_pair
    elif given["text_pair"] is not None:
        raise ConfigError(
            f"text_pair={given['text_pair']}, but run={given['run']} reads one text per row.\n"
            "Allowed: text_pair only for a run of pairs of texts.\nLeave it out."
        )
    # torch takes seconds to import, and the answers above come without it
    from prunekit.data.encoding import load_tokenizer
    from prunekit.pipelines.predict import check_rows, predict_file, read_rows

    rows = check_rows(read_rows(data), columns, given["empty"], run.spec.kind, load_tokenizer(run.model))
    predicted = predict_file(run, rows, out, given["batch_size"])
    print(f"{out}: {predicted} of {len(rows.table)} rows predicted")
    return DONE


def _files(data: str | None, out: str | None) -> tuple[Path, Path]:
    """Return the two files, if the first exists and the second has a suffix that can be written."""
    if data is None or out is None:
        raise ConfigError(
            f"predict needs {'data' if data is None else 'out'}=...\nAllowed: data=<.csv, .tsv, .jsonl or .parquet> "
            "out=<.csv or .jsonl>.\nAs prunekit predict run=... data=new.csv out=predicted.csv"
        )
    source, target = Path(data), Path(out)
    if not source.is_file():
        raise ConfigError(
            f"data={data} {why_no_file(source)}.\nAllowed: a .csv, .tsv, .jsonl or .parquet file.\nGive its path."
        )
    if target.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"out={out} has {f'the suffix {target.suffix}' if target.suffix else 'no suffix'}.\n"
            f"Allowed: {', '.join(FORMATS)}.\nType out={target.with_suffix('.csv')}"
        )
    if target.resolve() == source.resolve():
        raise ConfigError(
            f"out={out} is the file that is read.\nAllowed: another file.\n"
            f"Type out={target.with_name(f'{target.stem}_predicted{target.suffix}')}"
        )
    if not target.parent.is_dir():
        raise ConfigError(
            f"out={out}: the folder {target.parent} does not exist.\nAllowed: a file in a folder that exists.\n"
            f"mkdir -p {target.parent}"
        )
    return source, target
