"""The smallest runs that prune weights, for tests: generated text, a random decoder."""

from prunekit.config.composition import compose
from prunekit.config.validation import validate
from prunekit.pipelines.run import run

SMALL = (
    "task=domain_legal",
    "task.synthetic_rows=24",
    "backbone=tiny_decoder",
    "trainer.threads=1",
    "task.open.samples=3",
    "task.open.seqlen=24",
    "task.domain.samples=3",
    "task.domain.seqlen=24",
    "task.eval_tokens=100",
    "task.window=32",
    "task.stride=null",
    "logger.wandb.enabled=false",
)


def configured(folder, *given):
    """The validated configuration of a small run, its folders inside `folder`."""
    chosen = {word.split("=")[0] for word in given}
    small = [word for word in SMALL if word.split("=")[0] not in chosen]
    overrides = [*small, *given, f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    cfg, choices = compose(overrides)
    validate(cfg, choices)
    return cfg


def run_small(folder, *given):
    """The result of a small run and its folder."""
    result = run(configured(folder, *given))
    (path,) = (folder / "runs").glob(f"*/*/*/*/*-{result.hash}")
    return result, path
