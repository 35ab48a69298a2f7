r"""D-Pruner against its baselines: every variant on the same calibration text and the same meter, one process.

    python benchmarks/weights.py run --tasks domain_legal domain_medical --seeds 1 2   # runs what is missing
    python benchmarks/weights.py table --results benchmarks/results/weights_pilot.json

The pilot was made by
    python benchmarks/weights.py run --tasks domain_legal --seeds 1 --results benchmarks/results/weights_pilot.json \
        --set task.open.samples=8 task.domain.samples=8 task.eval_tokens=2048

A grid of Hydra's would run every method under every option; here each variant is one line. A run that is done is not
repeated. Its checkpoint is removed once its numbers are taken: 64 of them would fill a disk.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "weights.json"
VARIANTS = [
    ["method=dpruner", "method.lambda_=0.3"],
    ["method=dpruner", "method.score=general_only"],
    ["method=dpruner", "method.score=domain_only"],
    ["method=magnitude"],
    ["method=wanda", "method.calibration=mixed"],
    ["method=sparsegpt", "method.calibration=mixed"],
    ["method=dpruner", "method.weight_update=obs"],
    *(["method=dpruner", f"method.lambda_={value}"] for value in (0.1, 1.0)),
    *(["method=wanda", f"method.calibration={on}"] for on in ("open", "domain")),
    *(["method=sparsegpt", f"method.calibration={on}"] for on in ("open", "domain")),
    *(["method=gblm", f"method.calibration={on}"] for on in ("open", "domain", "mixed")),
]
# sized for one core: a minute of it per variant and task
COMMON = [
    "backbone=smollm2",
    "trainer.threads=1",
    "task.open.samples=16",
    "task.open.seqlen=256",
    "task.domain.samples=16",
    "task.domain.seqlen=256",
    "task.window=512",
    "task.stride=512",
    "task.eval_tokens=4096",
    "logger.wandb.enabled=false",
]


# the question alone: with its abstract a question takes fifteen times as long
def overrides(task: str, variant: list[str], seed: int) -> list[str]:
    own = ['task.choice.template="Question: {{ question }} Answer (yes, no or maybe):"']
    return [f"task={task}", *variant, f"seed={seed}", *COMMON, *(own if task == "domain_medical" else [])]


def run_all(tasks: list[str], seeds: list[int], runs_dir: str, common: list[str], results: Path) -> None:
    from prunekit.config import compose, validate
    from prunekit.run import run

    for seed in seeds:
        for task in tasks:
            for variant in VARIANTS:
                given = [*overrides(task, variant, seed), f"runs_dir={runs_dir}", *common]
                cfg, choices = compose(given)
                validate(cfg, choices)
                print("\npython train.py", " ".join(given), flush=True)
                result = run(cfg)
                for file in Path(runs_dir).glob(f"{task}/*/*/*/*/model/*.safetensors"):
                    file.unlink()
                take(result, given, results)


def take(result: dict, given: list[str], results: Path) -> None:
    """Puts one result into the committed file, in place of an earlier one of the same run."""
    stored = json.loads(results.read_text()) if results.exists() else {"runs": []}
    keys = ("task", "variant", "seed", "hash", "dense", "pruned", "sparsity", "seconds", "peak_memory_mib", "reused")
    row = {key: result[key] for key in keys} | {"given": given, "calibration": result["calibration"]}
    others = [run for run in stored["runs"] if run["hash"] != row["hash"]]
    stored["runs"] = [*others, row]
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in stored["runs"])
    results.write_text('{"runs": [\n' + lines + "\n]}\n")


def table(runs: list[dict]) -> str:
    """Mean over seeds, a table per task; the best of each column is bold."""
    found = []
    for task in dict.fromkeys(run["task"] for run in runs):
        rows = [run for run in runs if run["task"] == task]
        columns = ["open_perplexity", "domain_perplexity"]
        if "choice_accuracy" in rows[0]["pruned"]:
            columns += ["choice_accuracy", "choice_macro_f1"]
        seeds = sorted({run["seed"] for run in rows})
        names = [name.replace("_", " ") for name in columns]
        found += [f"**{task}**, seeds {', '.join(map(str, seeds))}", ""]
        found += [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(columns)]
        dense = rows[0]["dense"]
        found.append("| dense | " + " | ".join(shown(name, [dense[name]]) for name in columns) + " |")
        variants = list(dict.fromkeys(run["variant"] for run in rows))
        values = {v: [[r["pruned"][c] for r in rows if r["variant"] == v] for c in columns] for v in variants}
        for variant in variants:
            cells = []
            for place, name in enumerate(columns):
                means = [mean(values[v][place]) for v in variants]
                best = min(means) if "perplexity" in name else max(means)
                cell = shown(name, values[variant][place])
                cells.append(f"**{cell}**" if mean(values[variant][place]) == best else cell)
            found.append(f"| {variant} | {' | '.join(cells)} |")
        found.append("")
    return "\n".join(found)


def shown(name: str, values: list[float]) -> str:
    scale = 1 if "perplexity" in name else 100
    spread = f" ({scale * min(values):.2f}-{scale * max(values):.2f})" if len(values) > 1 else ""
    return f"{scale * mean(values):.2f}{spread}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--tasks", nargs="+", default=["domain_legal", "domain_medical"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", nargs="*", default=[], help="key=value for every run")
    given = parser.parse_args(arguments)
    if given.what == "run":
        run_all(given.tasks, given.seeds, given.runs_dir, given.set, given.results)
    print(table(json.loads(given.results.read_text())["runs"]))


if __name__ == "__main__":
    main(sys.argv[1:])
