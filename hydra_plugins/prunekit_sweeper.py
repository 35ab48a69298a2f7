"""prunekit's sweeper, where Hydra looks for plug-ins; prunekit.runs.sweep does the work."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

# max_batch_size: jobs passed to the launcher at a time, null = all; dry: only show what would run, set by --dry
# params: one grid; lines: several grids, each combined with params, for jobs that do not vary the same keys
GRID = {
    "_target_": "hydra_plugins.prunekit_sweeper.GridSweeper",
    "max_batch_size": None,
    "params": None,
    "lines": None,
    "dry": False,
}
ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GRID, provider="prunekit")


class GridSweeper(BasicSweeper):
    """A grid sweeper that can be interrupted and repeated: no job runs twice, and several processes can share one grid.

    Besides `params` it takes `lines`, each of which is a grid written as on the command line:
    "method=wanda,gblm method.calibration=open,mixed". Overrides given on the command line apply to all lines; values
    given for the first key of a line select among the lines.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        lines: list[str] | None = None,
        dry: bool = False,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.lines = lines
        self.dry = dry

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs whose results are missing; with `dry`, only show them."""
        from prunekit.runs.sweep import Sweep

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        folder = Path(self.config.hydra.sweep.dir)
        sweep = Sweep(self.jobs(arguments), lambda job: loader.load_sweep_config(self.config, job), folder)
        if self.dry:
            return sweep.preview()
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        return sweep.run(self._launch)

    def jobs(self, arguments: Sequence[str]) -> list[list[str]]:
        """Return the overrides of every job, line by line. Raises ConfigError if `arguments` select no line."""
        typed = self._parse([*arguments])
        if not self.lines:
            return self._product([*self._parse(self._parse_config()), *typed])
        params, jobs = self._parse(self._parse_config()), []
        for line in self.lines:
            first, *rest = self._parse(shlex.split(line))
            key = first.get_key_element()
            wanted = [value for given in typed if given.get_key_element() == key for value in _values(given)]
            values = [value for value in _values(first) if not wanted or value in wanted]
            if values:
                others = [given for given in typed if given.get_key_element() != key]
                head = self._parse([f"{key}={','.join(values)}"])
                jobs += self._product([*params, *head, *rest, *others])
        if not jobs:
            from prunekit.config.errors import ConfigError

            raise ConfigError(
                f"{' '.join(arguments)}: no line of the sweep has this.\nAllowed: {'; '.join(self.lines)}.\n"
                "Choose one of these, or run without sweeps=..."
            )
        return jobs

    def _parse(self, words: Sequence[str]) -> list[Override]:
        assert self.hydra_context is not None
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(words))

    def _product(self, overrides: list[Override]) -> list[list[str]]:
        (jobs,) = self.split_arguments(overrides, None)
        return [list(job) for job in jobs]

    def _launch(self, jobs: list[list[str]], first: int) -> None:
        assert self.launcher is not None
        for chunk in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            for returned in self.launcher.launch(chunk, initial_job_idx=first):
                _ = returned.return_value  # raises the launcher's own errors; a job's errors never get here
            first += len(chunk)


def _values(override: Override) -> list[str]:
    """Return the values of an override, as typed."""
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]
