"""Where Hydra looks for sweepers; the work is done by prunekit.sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

# max_batch_size: jobs handed to the launcher at a time, null = all; dry: say what would run, which --dry sets
GRID = {
    "_target_": "hydra_plugins.prunekit_sweeper.GridSweeper",
    "max_batch_size": None,
    "params": None,
    "dry": False,
}
ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GRID, provider="prunekit")


class GridSweeper(BasicSweeper):
    """Hydra's grid, run so that it survives: nothing is run twice, and several processes share one grid."""

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None, dry: bool = False
    ) -> None:
        super().__init__(max_batch_size, params)
        self.dry = dry

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what is missing; with `dry` says what that would be."""
        from prunekit.sweep import Sweep

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        folder = Path(self.config.hydra.sweep.dir)
        sweep = Sweep(jobs, lambda job: loader.load_sweep_config(self.config, job), folder)
        if self.dry:
            return sweep.preview()
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        return sweep.run(self._launch)

    def _launch(self, jobs: list[list[str]], first: int) -> None:
        assert self.launcher is not None
        for chunk in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            for returned in self.launcher.launch(chunk, initial_job_idx=first):
                _ = returned.return_value  # raises what the launcher itself met; a job's own errors never come here
            first += len(chunk)
