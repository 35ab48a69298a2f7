"""Who may import whom, and who may touch the insides of a Hugging Face layer; read from the source, nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# which imports a part of the package never makes, not even inside a function
FRAMEWORKS = ("lightning", "hydra", "omegaconf", "datasets")
FORBIDDEN = {
    "prunekit.tokens": (
        "prunekit.weights", "prunekit.methods", "prunekit.data", "prunekit.runtime", "prunekit.cost",
        "prunekit.objectives", *FRAMEWORKS,
    ),
    "prunekit.weights": ("prunekit.tokens", "prunekit.methods", "prunekit.data", "prunekit.runtime", *FRAMEWORKS),
    "prunekit.runtime": ("prunekit.methods", *FRAMEWORKS),
    "prunekit.data": (
        "prunekit.tokens", "prunekit.weights", "prunekit.methods", "prunekit.cost", "prunekit.objectives",
    ),
    "prunekit.cost": ("prunekit", "transformers", *FRAMEWORKS),
    "prunekit.objectives": ("prunekit", "transformers", *FRAMEWORKS),
    "prunekit.methods": (
        "hydra", "omegaconf", "prunekit.config", "prunekit.cli", "prunekit.pipeline", "prunekit.run", "prunekit.runs",
    ),
}  # fmt: skip

# what methods share; the modules of methods/ that others may import
SHARED_METHODS = ("prunekit.methods.base", "prunekit.methods.static", "prunekit.methods.weight_base")

# what method authors test with: it may import everything and pytest, and nothing that runs may import it
FOR_TESTS_ONLY = ("prunekit.conformance",)

# answer in a fraction of a second, so nothing heavy at import, neither here nor in what they import
LIGHT = (
    "prunekit", "prunekit.config", "prunekit.cli", "prunekit.run", "prunekit.runs",
    "prunekit.data.spec", "prunekit.data.sources", "prunekit.data.packages", "train", "prunekit.report.table",
    "prunekit.export", "prunekit.benchmark", "prunekit.opened", "prunekit.runtime.batching",
)  # fmt: skip
HEAVY = (
    "torch", "lightning", "transformers", "datasets", "pandas", "torchmetrics", "pyarrow", "matplotlib", "safetensors",
    "wandb", "sklearn", "scipy",
)  # fmt: skip

# names of submodules and methods inside Hugging Face's layers
LAYER_INSIDES = {
    "attention", "crossattention", "intermediate", "feed_forward_chunk", "self_attn", "sa_layer_norm",
    "output_layer_norm", "q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "LayerNorm",
}  # fmt: skip
MAY_TOUCH_LAYERS = ("prunekit.tokens.backbones", "prunekit.tokens.attention")


def within(name, parts):
    return any(name == part or name.startswith(part + ".") for part in parts)


def resolved(node, module, is_package):
    """The absolute names that an import statement may load; `from a import b` counts as a and as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        anchor = package[: len(package) - (node.level - 1)]
        base = ".".join([*anchor, *([base] if base else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def imports(source, module, *, is_package=False):
    """All imports of a source, also those inside functions and for type checkers, as (line, absolute name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in resolved(node, module, is_package))


def imports_at_load(source, module, *, is_package=False):
    """The imports that run when the module loads: neither inside functions nor under TYPE_CHECKING."""
    waiting = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in resolved(node, module, is_package))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(child for child in ast.iter_child_nodes(node))


def wrong_imports(source, module, *, is_package=False):
    """What this module imports and may not."""
    found = []
    for line, name in imports(source, module, is_package=is_package):
        for part, forbidden in FORBIDDEN.items():
            if within(module, [part]) and within(name, forbidden) and not within(name, [part]):
                found.append(f"{module}:{line} imports {name}, which {part} never does")
        if within(name, ["prunekit.methods"]) and name != "prunekit.methods" and not within(name, SHARED_METHODS):
            found.append(f"{module}:{line} imports {name}; only configuration names a method")
        if within(name, ("pytest", *FOR_TESTS_ONLY)) and module not in FOR_TESTS_ONLY:
            found.append(f"{module}:{line} imports {name}, which only tests and {' '.join(FOR_TESTS_ONLY)} do")
    return found


def touched_layers(source, module):
    """Where this module reaches into a Hugging Face layer and may not."""
    if module in MAY_TOUCH_LAYERS:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        name = None
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
        if name in LAYER_INSIDES:
            found.append(f"{module}:{node.lineno} touches .{name}; only {' and '.join(MAY_TOUCH_LAYERS)} may")
    return found


def heavy_imports(start, sources):
    """The heavy packages that loading `start` loads, each with the chain of modules that leads there."""
    found, seen, waiting = [], set(), [(start, (start,))]
    while waiting:
        module, chain = waiting.pop(0)
        if module in seen or module not in sources:
            continue
        seen.add(module)
        source, is_package = sources[module]
        for _, name in imports_at_load(source, module, is_package=is_package):
            if within(name, HEAVY):
                found.append(f"{' -> '.join(chain)} loads {name}")
            # loading a.b.c loads a and a.b too
            parts = name.split(".")
            waiting.extend((".".join(parts[:end]), (*chain, name)) for end in range(1, len(parts) + 1))
    return found


def package_sources():
    """Every module of the project: its dotted name, its source, whether it is a package."""
    sources = {"train": ((ROOT / "train.py").read_text(), False)}
    for path in sorted((ROOT / "prunekit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        sources[".".join(parts[:-1] if is_package else parts)] = (path.read_text(), is_package)
    return sources


SOURCES = package_sources()


def test_the_package_was_found():
    assert {"prunekit", "prunekit.tokens.encoder", "prunekit.methods.top", "train"} <= set(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_direction(module):
    source, is_package = SOURCES[module]
    assert wrong_imports(source, module, is_package=is_package) == []


@pytest.mark.parametrize("module", SOURCES)
def test_two_files_alone_know_the_insides_of_a_layer(module):
    assert touched_layers(SOURCES[module][0], module) == []


@pytest.mark.parametrize("module", [name for name in LIGHT if name in SOURCES])
def test_light_modules_load_nothing_heavy(module):
    assert heavy_imports(module, SOURCES) == []


# -- the checks can fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("prunekit.tokens.policies", "import lightning.pytorch as L", "lightning.pytorch"),
        ("prunekit.tokens.policies", "def f():\n    from omegaconf import OmegaConf", "omegaconf"),
        ("prunekit.tokens.policies", "from prunekit import data", "prunekit.data"),
        ("prunekit.tokens.policies", "from ..weights import masks", "prunekit.weights"),
        ("prunekit.tokens.budget", "from prunekit.cost import Shape", "prunekit.cost"),
        ("prunekit.weights.masks", "from prunekit.tokens.state import Trace", "prunekit.tokens.state"),
        ("prunekit.pipeline", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
        ("prunekit.pipeline", "from prunekit.methods import dense", "prunekit.methods.dense"),
        ("prunekit.methods.ltp", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
        ("prunekit.methods.ltp", "from .top import ToP", "prunekit.methods.top"),
        ("prunekit.cost", "from prunekit.tokens.state import Trace", "prunekit.tokens.state"),
        ("prunekit.cli", "def f():\n    import pytest", "pytest"),
        ("prunekit.pipeline", "from prunekit.conformance import MethodConformance", "prunekit.conformance"),
        ("prunekit.conformance", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
    ],
)
def test_a_wrong_import_is_found(module, source, name):
    assert any(name in message for message in wrong_imports(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prunekit.methods.ltp", "from prunekit.methods.base import TokenPruningMethod"),
        ("prunekit.tokens.encoder", "import torch\nfrom prunekit.tokens.state import Trace"),
        ("prunekit.tokens.encoder", "from .state import Trace"),
        ("prunekit.database", "import hydra"),
        ("prunekit.conformance", "import pytest\nfrom prunekit.pipeline import Pipeline"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    assert wrong_imports(source, module) == []


@pytest.mark.parametrize(
    "source", ["layer.attention.self", "x = getattr(layer, 'intermediate')", "y = block.ffn.lin1(h)"]
)
def test_reaching_into_a_layer_is_found(source):
    assert touched_layers(source, "prunekit.tokens.encoder") != []
    assert touched_layers(source, "prunekit.tokens.backbones") == []


def planted(**sources):
    return {name.replace("_", "."): (source, name == "a") for name, source in sources.items()}


def test_a_heavy_import_is_found_through_other_modules():
    sources = planted(
        a="", a_b="from a.c import f", a_c="try:\n    import torch.nn as nn\nexcept ImportError:\n    pass"
    )
    assert heavy_imports("a.b", sources) == ["a.b -> a.c loads torch.nn"]
    assert heavy_imports("a.b", planted(a="import pandas", a_b="from a import c", a_c="")) == ["a.b -> a loads pandas"]


def test_a_heavy_import_in_a_function_or_for_type_checkers_is_no_burden():
    lazy = (
        "def f():\n    import torch\n"
        "if TYPE_CHECKING:\n    import transformers\n"
        "class A:\n    def g(self):\n        import pandas"
    )
    assert heavy_imports("a.b", planted(a="", a_b=lazy)) == []
