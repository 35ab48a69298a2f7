"""`prunekit serve`: settings, runs and addresses that are refused, and the server as one starts and stops it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import yaml
from support.exported import PRUNERS, stored_run
from support.paths import ROOT
from support.run_result import CONTENT

from prunekit.cli import serve
from prunekit.cli.settings import parse_settings
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.serving.address import bind, listen

USE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stored_run(tmp_path_factory.mktemp("served"), "topk", PRUNERS["topk"]())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ports=1"], "Unknown setting of serve: ports=1.\n"),
        (["port=70000"], "port=70000 is out of range"),
        (["timeout_s=0"], "timeout_s=0 is out of range"),
        (["queue=8", "request_texts=9"], "such a request would never fit"),
        ([], "no run is given"),
        (["run=nowhere"], "run=nowhere is no run"),
        (["run=[RUN,nowhere]"], "run=nowhere is no run"),
        (["run=RUN", "tokens=nowhere"], "tokens=nowhere cannot be read (No such file or directory)"),
        (["run=RUN", "port=TAKEN"], "cannot listen on host=127.0.0.1 port=TAKEN (Address already in use"),
        (["run=RUN", "host=192.0.2.1", "port=0"], "cannot listen on host=192.0.2.1 port=0 ("),
        (["run=RUN", "port=0", "max_length=600"], "max_length=600, but this model reads"),
        (["run=RUN", "port=0", "max_length=32", "batch_tokens=31"], "has no room for one text of max_length=32"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(words, message, run):
    with bind("127.0.0.1", 0) as taken:
        listen(taken)
        port = taken.getsockname()[1]
        words = [word.replace("RUN", str(run)).replace("TAKEN", str(port)) for word in words]
        with pytest.raises(ConfigError, match=re.escape(message.replace("TAKEN", str(port)))) as refused:
            serve.main(words)
    assert len(str(refused.value).splitlines()) <= 3


def test_the_port_is_closed_until_the_models_are_loaded(run, monkeypatch):
    with bind("127.0.0.1", 0) as place:
        address = place.getsockname()
    tried = []

    def load_all(runs, given):
        with socket.socket() as client:
            tried.append(client.connect_ex(address))
        raise ConfigError("this model is damaged")

    monkeypatch.setattr("prunekit.serving.model.load_all", load_all)
    with pytest.raises(ConfigError, match="this model is damaged"):
        serve.main([f"run={run}", f"port={address[1]}"])
    assert tried[0] != 0


def test_a_question_answering_run_is_refused_before_anything_slow(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cfg, _ = compose(["method=topk", "task=squad2", "backbone=tiny"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(cfg))))
    result = CONTENT | {"hash": "1a2b3c4d", "method": "topk", "task": "squad2"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    monkeypatch.setitem(sys.modules, "prunekit.models.pretrained", None)
    with pytest.raises(ConfigError, match="finds answers in texts, which it reads in windows, which this server"):
        serve.main([f"run={tmp_path}"])


def test_without_the_extra_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'prunekit[serve]'")):
        serve.main([f"run={run}"])


@pytest.mark.parametrize(
    ("content", "tokens"),
    [(b"first\nsecond\n", ["first", "second"]), (b" \n", None), ("für".encode(), None), (b"a" * 1_000_001, None)],
)
def test_tokens_are_the_lines_of_a_file(content, tokens, tmp_path):
    (tmp_path / "tokens").write_bytes(content)
    if tokens is not None:
        assert serve.read_tokens(str(tmp_path / "tokens")) == tokens
        return
    with pytest.raises(ConfigError, match="Allowed: a file with one token in a line"):
        serve.read_tokens(str(tmp_path / "tokens"))


def test_help_is_the_commented_file(capsys):
    assert serve.main(["--help"]) == 0
    assert "queue: 256           # int 1..; texts that may wait" in capsys.readouterr().out


# -- the container -------------------------------------------------------------------------------------------


def test_the_containers_start_a_server_with_settings_that_exist():
    docker = (ROOT / "docker" / "Dockerfile").read_text()
    compose_file = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", docker, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", docker, re.MULTILINE)
    (service,) = compose_file["services"].values()
    for words in (json.loads(entry) + json.loads(command), json.loads(entry) + service["command"]):
        assert words[:2] == ["prunekit", "serve"]
        given = parse_settings("serve", words[2:])
        assert (given["host"], given["port"]) == ("0.0.0.0", 8000)
    assert re.search(r"^USER (?!root)\w+", docker, re.MULTILINE)
    assert "[serve]" in docker
    assert any(path in DOCS for path in ("docker/Dockerfile", "docker/compose.yaml"))
    # what is waited for must be shorter than what the container's end waits for
    assert int(service["stop_grace_period"].rstrip("s")) > parse_settings("serve", [])["drain_s"] + 3
    assert "/ready" in " ".join(service["healthcheck"]["test"])


# -- as one starts and stops it ------------------------------------------------------------------------------


def started(run, *words):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "prunekit", "serve", f"run={run}", "port=0", *words]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def asked(address, body, seconds=30):
    with urllib.request.urlopen(address + "/predict", body, seconds) as answer:
        return answer.status, json.load(answer)


@pytest.mark.slow
def test_the_documented_command_serves_a_run_and_sigterm_finishes_open_requests(run):
    short, command = re.findall(r"^prunekit serve run=.*$", USE + DOCS, re.MULTILINE)[:2]
    (ask,) = re.findall(r"^curl .*/predict .*$", DOCS, re.MULTILINE)
    for words in (short, command):
        parse_settings("serve", shlex.split(words, comments=True)[2:])
    body = shlex.split(ask)[-1].encode()
    child = started(run, "batch_wait_ms=1500")
    try:
        line = child.stdout.readline()
        assert line.startswith(f"serving {run} on http://127.0.0.1:")
        answers = []
        half = socket.create_connection(("127.0.0.1", int(line.rsplit(":", 1)[1])))
        half.sendall(b"POST /predict HTTP/1.1\r\n")  # does not keep the server from ending
        client = threading.Thread(target=lambda: answers.append(asked(line.split()[-1], body)))
        client.start()
        time.sleep(0.7)  # the request waits for others, which do not come
        child.send_signal(signal.SIGTERM)
        client.join(30)
        out, err = child.communicate(timeout=30)
        half.close()
    finally:
        child.kill()
        child.communicate()
    assert (child.returncode, out, err) == (0, "answered 1 requests\n", "")
    assert answers[0][0] == 200
    assert set(answers[0][1]["predictions"][0]) == {"label", "scores", "tokens", "kept"}


@pytest.mark.slow
def test_a_killed_server_is_back_on_its_port_at_once(run):
    child = started(run)
    try:
        line = child.stdout.readline()
        port = line.rsplit(":", 1)[1].strip()
        clients = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(20)]
        assert asked(line.split()[-1], b'{"texts": ["a good film"]}')[0] == 200
        child.kill()
        child.communicate()
        child = started(run, f"port={port}")
        assert child.stdout.readline() == line
        assert asked(line.split()[-1], b'{"texts": ["a good film"]}')[0] == 200
        for client in clients:
            client.close()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[0] == "answered 1 requests\n"
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()
