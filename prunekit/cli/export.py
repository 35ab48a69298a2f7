"""`prunekit export`: write a run's pruned model for another runtime, and check it against the model itself."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, MISSED, ConfigError
from prunekit.runs.finished import open_run


def main(arguments: Sequence[str]) -> int:
    """Export, compare and print the report. Return 0, or 3 if a float32 file is not the same function as the model.

    Raises:
        ConfigError: a setting, a run or a package that is missing, or a method that cannot be written as a graph.
    """
    if asks_for_help(arguments):
        return print_help("export")
    given = parse_settings("export", arguments)
    run = open_run(given.pop("run"))
    if run.spec.kind.labels_words:
        raise ConfigError(
            f"run={run.path} {run.spec.kind.does}; export does not write such models.\n"
            "Allowed: a run of classification, regression or answers.\n"
            f"Use prunekit.load({str(run.path)!r}); its model/ is a folder of AutoModelForTokenClassification."
        )
    # torch takes seconds to import, and the answers above come without it
    from prunekit.pipelines.export import ExportOptions, export, format_report
    from prunekit.runtime.extras import MissingPackageError
    from prunekit.runtime.onnx_graph import NotExportableError

    try:
        report = export(run, ExportOptions(**given))
    except (MissingPackageError, NotExportableError) as error:
        raise ConfigError(str(error)) from error
    print(format_report(report))
    return DONE if report.faithful else MISSED
