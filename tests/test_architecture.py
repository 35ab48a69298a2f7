"""The architecture: the floor of each room, who may import whom, and how large a file may grow.

Read from the source by docs/floors.py; nothing is imported or run. `python docs/floors.py` draws what is checked here.
"""

import ast
import io
import tokenize

import pytest
from support.paths import ROOT
from support.scripts import script

floors = script(ROOT / "docs" / "floors.py")

# a room is a package or a single module directly in prunekit/; it imports only from lower floors. On floor 1 all may
# import the single modules, and nobody a package
FLOORS = {
    8: ("cli", "conformance"),
    7: ("pipelines",),
    6: ("report", "loggers", "serving"),
    5: ("methods", "bench", "results", "training"),
    4: ("evaluation", "runtime", "runs"),
    3: ("models",),
    2: ("data",),
    1: ("config", "tokens", "weights", "cost", "losses", "files", "console", "environment"),
}
LOOSE_MODULES, FILE_LINES, CLASS_LINES = 6, 450, 300

# the only parts that may import these
ONLY_IN = {
    "lightning": (
        "prunekit.methods", "prunekit.training", "prunekit.data.module", "prunekit.pipelines", "prunekit.loggers",
    ),
    "hydra": ("prunekit.config", "prunekit.cli", "prunekit.pipelines.job", "prunekit.environment"),
    "pytest": ("prunekit.conformance",),
}  # fmt: skip

# what a part never imports, besides what its floor forbids
FRAMEWORKS = ("lightning", "hydra", "omegaconf", "datasets")
NEVER = {
    "prunekit.tokens": ("prunekit.cost", "prunekit.losses", *FRAMEWORKS),
    "prunekit.weights": FRAMEWORKS,
    "prunekit.runtime": FRAMEWORKS,
    "prunekit.data": ("prunekit.tokens", "prunekit.weights", "prunekit.cost", "prunekit.losses"),
    "prunekit.cost": ("prunekit", "transformers", *FRAMEWORKS),
    "prunekit.losses": ("prunekit", "transformers", *FRAMEWORKS),
    "prunekit.methods": ("hydra", "omegaconf", "prunekit.config", "prunekit.runs"),
}
OPEN_TO_ALL = ("prunekit.config.errors",)  # whoever reads a setting may raise ConfigError

# what methods share; the modules of methods/ that others may import
SHARED_METHODS = ("prunekit.methods.base", "prunekit.methods.context", "prunekit.methods.options",
                  "prunekit.methods.keys", "prunekit.methods.static", "prunekit.methods.weight_base")  # fmt: skip

# answer in a fraction of a second, so nothing heavy at import, neither here nor in what they import
LIGHT = (
    "train", "prunekit", "prunekit.__main__", "prunekit.config", "prunekit.cli", "prunekit.pipelines.run",
    "prunekit.runs.folder", "prunekit.runs.finished", "prunekit.data.spec", "prunekit.data.sources",
    "prunekit.data.packages", "prunekit.report", "prunekit.runtime.batching",
    "prunekit.serving.address",
    "prunekit.bench.result", "prunekit.bench.table",  # stored timings; the rest of bench measures, and loads torch
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
MAY_TOUCH_LAYERS = ("prunekit.tokens.families", "prunekit.tokens.attention")

# parts whose indented imports do not say why yet; ("prunekit",) switches the rule off
UNEXPLAINED = ()

SOURCES = floors.read_sources()
# and what starts the command line: no rooms, but held to the rules of imports
STARTERS = {"train": ROOT / "train.py", "prunekit.__main__": ROOT / "prunekit" / "__main__.py"}
EVERYTHING = SOURCES | {name: path.read_text() for name, path in STARTERS.items()}


def within(name, parts):
    return any(name == part or name.startswith(part + ".") for part in parts)


def references(sources):
    """What every module imports, as (place, module, reference)."""
    for module, source in sources.items():
        for reference in floors.references(source, module, floors.is_package(module, sources)):
            yield f"{path_of(module, sources)}:{reference.line}", module, reference


def assert_none(messages):
    """Fail with every message in full; pytest shows the start of a list alone."""
    found = list(messages)
    assert not found, "\n".join(["", *found])


def path_of(module, sources):
    return module.replace(".", "/") + ("/__init__.py" if floors.is_package(module, sources) else ".py")


# -- the rules -----------------------------------------------------------------------------------------------


def climbs(sources):
    """The arrows between rooms that do not point to a lower floor."""
    floor = {room: number for number, rooms in FLOORS.items() for room in rooms}
    found = []
    for arrow in floors.arrows(sources):
        user, used = floors.room_of(arrow.user), floors.room_of(arrow.used)
        if user == used or not {user, used} <= set(floor):
            continue
        is_single = not floors.is_package(f"prunekit.{used}", sources)
        if floor[used] >= floor[user] and not (floor[user] == 1 and is_single):
            verb = "names" if arrow.when == "string" else "imports"
            place = f"{path_of(arrow.user, sources)}:{arrow.line} (floor {floor[user]})"
            found.append(f"{place} {verb} {arrow.used} (floor {floor[used]})")
    return found


def circular_arrows(sources):
    """The arrows between modules that use each other, directly or through others."""
    circles = floors.circles(floors.module_graph(sources))
    return [
        f"{path_of(arrow.user, sources)}:{arrow.line} uses {arrow.used}"
        for arrow in floors.arrows(sources)
        if any({arrow.user, arrow.used} <= set(circle) for circle in circles)
    ]


def method_of(name):
    """The method that a module belongs to, itself or as a part of it: top for prunekit.methods.top_gates."""
    parts = name.split(".")
    return parts[2].partition("_")[0] if parts[:2] == ["prunekit", "methods"] and len(parts) > 2 else None


def wrong_imports(sources):
    """Imports that a floor allows and a rule of its own forbids."""
    found = []
    for place, module, reference in references(sources):
        name, is_import = reference.name, reference.when != "string"
        for part, forbidden in NEVER.items():
            if within(module, [part]) and within(name, forbidden) and not within(name, [part, *OPEN_TO_ALL]):
                found.append(f"{place} imports {name}, which {part} never does")
        for framework, allowed in ONLY_IN.items():
            if within(name, [framework]) and not within(module, allowed):
                found.append(f"{place} imports {name}, which only {', '.join(allowed)} may")
        names_method = within(name, ["prunekit.methods"]) and name != "prunekit.methods"
        if names_method and not within(name, SHARED_METHODS) and method_of(name) != method_of(module):
            found.append(f"{place} names {name}; only configuration names a method")
        if is_import and module != "prunekit" and takes_from_the_face(name, sources):
            found.append(f"{place} imports {name}; only __version__ is taken from prunekit itself")
    return found


def takes_from_the_face(name, sources):
    """Whether a name is of prunekit/__init__.py, not of a room."""
    room = ".".join(name.split(".")[:2])
    of_the_face = within(name, ["prunekit"]) and room not in sources
    return name == "prunekit" or (of_the_face and name != "prunekit.__version__")


def touched_layers(source, module):
    """Where this module reaches into a Hugging Face layer and may not."""
    if within(module, MAY_TOUCH_LAYERS):
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
        for reference in floors.references(sources[module], module, floors.is_package(module, sources)):
            if reference.when != "load":
                continue
            if within(reference.name, HEAVY):
                found.append(f"{' -> '.join(chain)} loads {reference.name}")
            # loading a.b.c loads a and a.b too
            parts = reference.name.split(".")
            loaded = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            waiting += [(name, (*chain, name)) for name in loaded]
    return found


def unexplained_imports(source, module):
    """The imports inside functions with no comment, neither on their line nor above the group that they are in."""
    if within(module, UNEXPLAINED):
        return []
    tree, lines = ast.parse(source), source.splitlines()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    imports = sorted((node.lineno, node.end_lineno) for node in inside if isinstance(node, ast.Import | ast.ImportFrom))
    comments = reasons(source)
    explained_group_ends, found = -1, []
    for first, last in imports:
        above = first - 1
        while above and not lines[above - 1].strip():  # blank lines part the groups of imports
            above -= 1
        if (above in comments and lines[above - 1].strip().startswith("#")) or above == explained_group_ends:
            explained_group_ends = last
        elif not comments & set(range(first, last + 1)):
            found.append(f"{module}:{first} {lines[first - 1].strip()}: say in a comment why it waits, or move it up")
    return found


def reasons(source):
    """The lines with a comment that is for people."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {token.start[0] for token in comments if not token.string.lstrip("# ").startswith(("noqa", "type:"))}


def too_long(source, module):
    """The file and its classes, where they have more lines than they may."""
    count = len(source.splitlines())
    found = [f"{module} has {count} lines, more than {FILE_LINES}"] if count > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and (size := node.end_lineno - node.lineno + 1) > CLASS_LINES:
            found.append(f"{module}:{node.lineno} class {node.name} has {size} lines, more than {CLASS_LINES}")
    return found


def stale(drawn, sources):
    """What to do when the drawing is not of this code."""
    return [] if drawn == floors.drawing(sources) else ["docs/floors.svg shows other walls; run python docs/floors.py"]


# -- the package keeps them ----------------------------------------------------------------------------------


def test_the_package_was_found():
    assert {"prunekit", "prunekit.tokens.encoder", "prunekit.methods.top", "train"} <= set(EVERYTHING)


def test_every_name_in_the_lists_above_exists():
    lists = (LIGHT, MAY_TOUCH_LAYERS, SHARED_METHODS, NEVER, OPEN_TO_ALL, UNEXPLAINED, *ONLY_IN.values())
    listed = {name for names in lists for name in names}
    assert sorted(listed - set(EVERYTHING)) == []


def test_every_room_has_a_floor_and_every_floor_has_its_rooms():
    planned = [room for rooms in FLOORS.values() for room in rooms]
    assert sorted(planned) == sorted(floors.rooms(SOURCES))


def test_no_import_climbs_or_runs_along_a_floor():
    assert_none(climbs(SOURCES))


def test_every_room_is_on_the_lowest_floor_that_its_imports_allow():
    assert floors.floors(floors.room_graph(SOURCES)) == {
        room: number for number, rooms in FLOORS.items() for room in rooms
    }


def test_no_room_and_no_module_is_in_a_circle():
    assert_none(circular_arrows(SOURCES))
    assert floors.circles(floors.room_graph(SOURCES)) == []


def test_few_modules_are_loose_at_the_top():
    # __main__.py comes on top: `python -m prunekit` needs it there, and it holds no code of its own
    assert len(set((ROOT / "prunekit").glob("*.py")) - {STARTERS["prunekit.__main__"]}) <= LOOSE_MODULES
    assert len(STARTERS["prunekit.__main__"].read_text().splitlines()) < 10


def test_files_and_classes_are_short():
    assert_none(line for module in SOURCES for line in too_long(SOURCES[module], module))


def test_the_drawing_is_of_this_code():
    assert stale((ROOT / "docs" / "floors.svg").read_text(), SOURCES) == []


def test_the_page_lists_every_file_of_this_code():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == floors.with_listing(page, SOURCES), "run python docs/floors.py"


def test_frameworks_methods_and_the_public_face_are_imported_only_where_they_may_be():
    assert_none(wrong_imports(EVERYTHING))


def test_two_places_alone_know_the_insides_of_a_layer():
    assert_none(line for module in EVERYTHING for line in touched_layers(EVERYTHING[module], module))


@pytest.mark.parametrize("module", [name for name in EVERYTHING if name in LIGHT or within(name, LIGHT[2:])])
def test_light_modules_load_nothing_heavy(module):
    assert heavy_imports(module, EVERYTHING) == []


def test_an_indented_import_says_why():
    assert_none(line for module in SOURCES for line in unexplained_imports(SOURCES[module], module))


# -- the checks can fail -------------------------------------------------------------------------------------


def planted(**sources):
    """Sources of a small package: planted(data_rows="...") is the module prunekit.data.rows."""
    modules = {f"prunekit.{name.replace('_', '.')}": source for name, source in sources.items()}
    return {"prunekit": ""} | {name.rpartition(".")[0]: "" for name in modules} | modules


@pytest.mark.parametrize(
    "back",
    [
        "from prunekit.data import rows",
        "from .rows import Rows",
        "def f():\n    from prunekit.data.rows import Rows",
        "if TYPE_CHECKING:\n    from prunekit.data.rows import Rows",
        "READER = 'prunekit.data.rows:Rows'",
        "READERS = {'plain': 'prunekit.data.rows.Rows'}",
    ],
)
def test_a_circle_is_found(back):
    sources = planted(data_rows="import prunekit.data.tiny", data_tiny=back)
    assert floors.circles(floors.module_graph(sources)) == [("prunekit.data.rows", "prunekit.data.tiny")]
    assert circular_arrows(sources) == [
        "prunekit/data/rows.py:1 uses prunekit.data.tiny",
        f"prunekit/data/tiny.py:{len(back.splitlines())} uses prunekit.data.rows",
    ]


def test_a_circle_of_rooms_needs_none_of_modules():
    sources = planted(
        data_rows="from prunekit.models.tiny import f", models_tiny="", models_heads="import prunekit.data.rows"
    )
    assert circular_arrows(sources) == []
    assert floors.circles(floors.room_graph(sources)) == [("data", "models")]


@pytest.mark.parametrize(
    "source", ['"""As prunekit.data.rows does."""', "'prunekit.data.rows'", "x = 'see prunekit.data.rows'"]
)
def test_a_docstring_and_a_sentence_draw_no_arrow(source):
    assert floors.arrows(planted(data_rows="", data_tiny=source)) == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"runs_kinds": "\n\nPIPELINE = 'prunekit.pipelines.tokens:Pipeline'", "pipelines_tokens": ""},
            "prunekit/runs/kinds.py:3 (floor 4) names prunekit.pipelines.tokens (floor 7)",
        ),
        (
            {"data_rows": "def f():\n    from prunekit.models.tiny import g", "models_tiny": ""},
            "prunekit/data/rows.py:2 (floor 2) imports prunekit.models.tiny (floor 3)",
        ),
        (
            {"report_rows": "from prunekit.loggers import base", "loggers_base": ""},
            "prunekit/report/rows.py:1 (floor 6) imports prunekit.loggers.base (floor 6)",
        ),
        (
            {"weights_masks": "from prunekit.tokens.state import Trace", "tokens_state": ""},
            "prunekit/weights/masks.py:1 (floor 1) imports prunekit.tokens.state (floor 1)",
        ),
        (
            {"files": "from prunekit.config.errors import ConfigError", "config_errors": ""},
            "prunekit/files.py:1 (floor 1) imports prunekit.config.errors (floor 1)",
        ),
        (
            {"tokens_encoder": "from ..data import rows", "data_rows": ""},
            "prunekit/tokens/encoder.py:1 (floor 1) imports prunekit.data.rows (floor 2)",
        ),
    ],
)
def test_a_climb_is_found(sources, message):
    assert climbs(planted(**sources)) == [message]


@pytest.mark.parametrize(
    "sources",
    [
        {"models_tiny": "from prunekit.data.rows import Rows", "data_rows": ""},
        {"data_rows": "from prunekit.tokens.state import Trace", "tokens_state": ""},
        {"weights_disk": "from prunekit.files import sha256", "files": ""},
        {"files": "from prunekit.console import say", "console": ""},
        {"data_rows": "from prunekit.data.text.spec import TextSpec", "data_text_spec": ""},
    ],
)
def test_a_step_down_is_let_through(sources):
    assert climbs(planted(**sources)) == []


def test_a_floor_is_one_above_the_highest_below():
    sources = planted(
        cli_main="import prunekit.data.rows, prunekit.models.tiny",
        models_tiny="import prunekit.data.rows",
        data_rows="import prunekit.config.keys",
        config_keys="import prunekit.files",
        files="",
        losses="",
    )
    assert floors.floors(floors.room_graph(sources)) == {
        "cli": 4, "models": 3, "data": 2, "config": 1, "files": 1, "losses": 1,
    }  # fmt: skip


def test_an_arrow_that_follows_from_others_is_not_drawn():
    assert floors.essential({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_a_long_file_and_a_long_class_are_found():
    assert too_long("x = 1\n" * 450, "prunekit.files") == []
    assert too_long("x = 1\n" * 451, "prunekit.files") == ["prunekit.files has 451 lines, more than 450"]
    assert too_long("class A:\n" + "    x = 1\n" * 299, "prunekit.files") == []
    assert too_long("\nclass A:\n" + "    x = 1\n" * 300, "prunekit.files") == [
        "prunekit.files:2 class A has 301 lines, more than 300"
    ]


def test_a_drawing_of_other_walls_is_found():
    sources = planted(data_rows="from prunekit.files import sha256", models_tiny="", files="")
    drawn = floors.drawing(sources)
    assert stale(drawn, sources) == []
    assert stale(drawn, sources | {"prunekit.data.rows": "import prunekit.files\n\nx = 1"}) == []
    message = ["docs/floors.svg shows other walls; run python docs/floors.py"]
    assert stale(drawn, sources | {"prunekit.data.rows": ""}) == message
    assert stale(drawn, sources | {"prunekit.models.tiny": "import prunekit.data.rows"}) == message
    assert stale(drawn, sources | {"prunekit.models.heads": ""}) == message
    assert stale(drawn, sources | {"prunekit.cost": ""}) == message


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("tokens_policies", "import lightning.pytorch as L", "lightning.pytorch"),
        ("tokens_policies", "def f():\n    from omegaconf import OmegaConf", "omegaconf"),
        ("tokens_budget", "from prunekit.cost import Shape", "prunekit.cost"),
        ("weights_masks", "import datasets", "datasets"),
        ("runtime_engine", "from omegaconf import OmegaConf", "omegaconf"),
        ("data_rows", "from ..tokens import state", "prunekit.tokens"),
        ("cost", "from prunekit.files import sha256", "prunekit.files"),
        ("cost", "import transformers", "transformers"),
        ("methods_ltp", "from prunekit.config import compose", "prunekit.config"),
        ("methods_ltp", "from prunekit.runs.kinds import kind_of", "prunekit.runs"),
        ("runs_run", "from hydra.core.hydra_config import HydraConfig", "hydra"),
        ("data_rows", "from lightning import pytorch", "lightning"),
        ("pipelines_tokens", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
        ("pipelines_tokens", "from prunekit.methods import dense", "prunekit.methods.dense"),
        ("pipelines_tokens", "METHOD = 'prunekit.methods.top.ToP'", "prunekit.methods.top"),
        ("methods_ltp", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
        ("methods_ltp", "from .top import ToP", "prunekit.methods.top"),
        ("conformance_suite", "from prunekit.methods.top import ToP", "prunekit.methods.top"),
        ("cli_main", "def f():\n    import pytest", "pytest"),
        ("bench_bench", "from prunekit import load", "prunekit.load"),
        ("bench_bench", "import prunekit", "prunekit"),
    ],
)
def test_a_wrong_import_is_found(module, source, name):
    assert any(name in message for message in wrong_imports(planted(**{module: source})))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("methods_ltp", "from prunekit.methods.base import TokenPruningMethod"),
        ("methods_ltp", "from prunekit.config.errors import ConfigError"),
        ("methods_ltp", "import lightning.pytorch as L"),
        ("tokens_encoder", "import torch\nfrom prunekit.tokens.state import Trace"),
        ("tokens_encoder", "from .state import Trace"),
        ("data_module", "import lightning.pytorch as L"),
        ("pipelines_job", "import hydra"),
        ("cli_main", "from prunekit import __version__"),
        ("cli_main", "SETTINGS = 'prunekit.json'"),
        ("conformance_suite", "import pytest\nfrom prunekit.pipelines.tokens import Pipeline"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    rooms = planted(tokens_state="", methods_base="", config_errors="", pipelines_tokens="")
    assert wrong_imports(rooms | planted(**{module: source})) == []


@pytest.mark.parametrize(
    "source", ["layer.attention.self", "x = getattr(layer, 'intermediate')", "y = block.ffn.lin1(h)"]
)
def test_reaching_into_a_layer_is_found(source):
    assert touched_layers(source, "prunekit.tokens.encoder") != []
    assert touched_layers(source, "prunekit.tokens.families.bert") == []


def test_a_heavy_import_is_found_through_other_modules():
    guarded = "try:\n    import torch.nn as nn\nexcept ImportError:\n    pass"
    sources = {"a": "", "a.b": "from a.c import f", "a.c": guarded}
    assert heavy_imports("a.b", sources) == ["a.b -> a.c loads torch.nn"]
    sources = {"a": "import pandas", "a.b": "from a import c", "a.c": ""}
    assert heavy_imports("a.b", sources) == ["a.b -> a loads pandas"]


def test_a_heavy_import_in_a_function_or_for_type_checkers_is_no_burden():
    lazy = (
        "def f():\n    import torch\n"
        "if TYPE_CHECKING:\n    import transformers\n"
        "class A:\n    def g(self):\n        import pandas"
    )
    assert heavy_imports("a.b", {"a": "", "a.b": lazy}) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import torch\n", []),
        ("def f():\n    import torch\n", [2]),
        ("def f():\n    import torch  # heavy, and most runs need none\n", []),
        ("def f():\n    import torch  # noqa: F401\n", [2]),
        ("def f():\n    # heavy, and most runs need none\n    import torch\n\n    import numpy\n", []),
        ("def f():\n    import torch  # heavy\n    import numpy\n", [3]),
        ("def f():\n    # starts the clock\n    x = 1\n    import torch\n", [4]),
        ("class A:\n    def f(self):\n        if self:\n            from torch import nn\n", [4]),
        ("def f():\n    from torch import (  # heavy\n        nn,\n    )\n", []),
    ],
)
def test_an_indented_import_without_a_reason_is_found(source, lines):
    assert [int(message.split()[0].split(":")[1]) for message in unexplained_imports(source, "a")] == lines
