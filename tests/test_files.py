"""Seals that show damage, the errors of disks, and digests of JSON, which must stay what they are."""

import errno
import hashlib
import os
import re
import signal
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from support.paths import visible

from prunekit import files
from prunekit.files import (
    append_jsonl,
    damage,
    folder_damage,
    json_sha256,
    move_sealed,
    read_jsonl,
    remove_sealed,
    seal,
    seal_folder,
    storage_error,
    write_jsonl,
    write_sealed,
    write_sealed_text,
)

CHANGED = "is not what was written: it was damaged, or changed by hand"


# -- seals -------------------------------------------------------------------------------------------


def test_a_seal_is_the_digest_the_size_and_the_owner(tmp_path):
    write_sealed_text(tmp_path / "a.txt", "abc", "1f3a9c0d")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert (tmp_path / ".a.txt.sha256").read_text() == f"{digest} 3 1f3a9c0d\n"
    assert damage(tmp_path / "a.txt") is None


@pytest.mark.parametrize("content", [b"abd", b"ab", b"abcd", b""], ids=["flipped", "cut", "longer", "empty"])
def test_a_file_that_is_not_what_was_written_is_damaged(tmp_path, content):
    write_sealed_text(tmp_path / "a.txt", "abc")
    (tmp_path / "a.txt").write_bytes(content)
    assert damage(tmp_path / "a.txt") == CHANGED


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no seal\n", b"0" * 64 + b" 3\n"])
def test_a_damaged_seal_is_damage(tmp_path, content):
    write_sealed_text(tmp_path / "a.txt", "abc")
    (tmp_path / ".a.txt.sha256").write_bytes(content)
    assert damage(tmp_path / "a.txt") == CHANGED


def test_a_file_without_a_seal_is_whole_and_a_seal_without_its_file_is_damage(tmp_path):
    (tmp_path / "a.txt").write_text("older")
    assert damage(tmp_path / "a.txt") is None
    assert damage(tmp_path / "nothing") is None
    write_sealed_text(tmp_path / "b.txt", "abc")
    (tmp_path / "b.txt").unlink()
    assert damage(tmp_path / "b.txt") == "is gone"
    remove_sealed(tmp_path / "a.txt", tmp_path / "b.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_another_run_is_wrong_for_a_run_and_whole_for_anybody(tmp_path):
    write_sealed_text(tmp_path / "a.txt", "abc", "1f3a9c0d")
    assert damage(tmp_path / "a.txt", "1f3a9c0d") is None
    assert damage(tmp_path / "a.txt", "00000000") == "is a file of another run (1f3a9c0d)"
    write_sealed_text(tmp_path / "b.txt", "abc")
    assert damage(tmp_path / "b.txt", "00000000") is None


def test_a_file_that_grows_is_whole_while_it_begins_with_what_was_sealed(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    append_jsonl(path, {"a": 2})
    assert damage(path, grows=True) is None
    assert damage(path) == CHANGED
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    seal(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path} {CHANGED}; delete the file and run again.")):
        read_jsonl(path)
    assert read_jsonl(path, is_damaged=True) == [{"a": 1}]


def test_of_a_damaged_file_the_rows_that_can_be_read_are_read(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}, {"a": 3}])
    content = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(content.replace(b'{"a": 2}', b'{"a"= 2}'))
    assert read_jsonl(tmp_path / "rows.jsonl", is_damaged=True) == [{"a": 1}, {"a": 3}]


def test_rows_are_not_appended_to_a_file_that_was_removed(tmp_path):
    with pytest.raises(FileNotFoundError):
        append_jsonl(tmp_path / "rows.jsonl", {"a": 1}, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_renamed_file_takes_its_seal_along(tmp_path):
    write_sealed_text(tmp_path / "new", "abc")
    write_sealed_text(tmp_path / "old", "xyz")
    move_sealed(tmp_path / "new", tmp_path / "old")
    assert visible(tmp_path) == ["old"]
    assert damage(tmp_path / "old") is None
    (tmp_path / "unsealed").write_text("abc")
    move_sealed(tmp_path / "unsealed", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("moves", [False, True], ids=["written", "renamed"])
@pytest.mark.parametrize("before", range(4))
def test_a_kill_between_any_two_steps_leaves_no_file_that_looks_damaged(tmp_path, moves, before):
    """Killed before the first, second, ... rename of a write over an earlier file."""
    path, other = tmp_path / "last.ckpt", tmp_path / "staged"
    write_sealed_text(path, "one")
    write_sealed_text(other, "two")
    child = os.fork()
    if child == 0:
        left = [None] * before
        rename = files.replace_durably

        def killing(*paths):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left.pop()
            rename(*paths)

        files.replace_durably = killing
        move_sealed(other, path) if moves else write_sealed_text(path, "two")
        os._exit(0)
    os.waitpid(child, 0)
    assert damage(path) is None
    assert path.read_text() == ("one" if before < 2 else "two")
    write_sealed_text(path, "three")
    assert damage(path) is None
    assert len((tmp_path / ".last.ckpt.sha256").read_text().splitlines()) == 1


def test_every_file_of_a_sealed_folder_is_checked_except_notes(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    assert folder_damage(tmp_path) is None  # of an older version
    seal_folder(tmp_path, "1f3a9c0d")
    (tmp_path / "README.md").write_text("a better card")
    (tmp_path / "onnx").mkdir()
    assert folder_damage(tmp_path, "1f3a9c0d") is None
    assert folder_damage(tmp_path, "00000000") == f"{tmp_path / 'config.json'} is a file of another run (1f3a9c0d)"
    (tmp_path / "model.safetensors").write_text("model_safetensors")
    assert folder_damage(tmp_path) == f"{tmp_path / 'model.safetensors'} {CHANGED}"
    assert folder_damage(tmp_path, quick=True) is None
    (tmp_path / "model.safetensors").unlink()
    assert folder_damage(tmp_path, quick=True) == f"{tmp_path / 'model.safetensors'} is gone"
    (tmp_path / ".sha256").write_text("?")
    assert folder_damage(tmp_path) == f"{tmp_path / '.sha256'} cannot be read"


def test_weights_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    write_sealed(tmp_path / "weights", lambda path: save_file({"a": torch.ones(1)}, path))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("any", "weights")]
    assert modes[0] == modes[1] != 0o600


# -- disks -------------------------------------------------------------------------------------------


def test_the_error_of_the_disk_is_found_behind_what_a_library_says():
    full = OSError(errno.ENOSPC, "No space left on device", "x")
    assert storage_error(full) is full
    wrapped = RuntimeError("unexpected pos 704 vs 598")
    wrapped.__context__ = full
    assert storage_error(wrapped) is full
    quoted = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert storage_error(quoted).errno == errno.ENOSPC
    assert storage_error(OSError("bert is not a local folder")) is None  # as transformers says it
    assert storage_error(OSError("1024 requested and 992 written")).errno == errno.ENOSPC  # as numpy says it
    assert storage_error(ValueError("28")) is None


# -- digests of JSON ---------------------------------------------------------------------------------


def test_a_digest_is_that_of_the_text_with_sorted_keys():
    assert json_sha256({"b": 1, "a": [None, 2.5]}) == hashlib.sha256(b'{"a": [null, 2.5], "b": 1}').hexdigest()


def test_each_option_is_part_of_the_digest():
    value = {"b": "\u00e9", "a": 1}
    assert json_sha256(value) == hashlib.sha256(b'{"a": 1, "b": "\\u00e9"}').hexdigest()
    assert json_sha256(value, sort_keys=False) == hashlib.sha256(b'{"b": "\\u00e9", "a": 1}').hexdigest()
    assert json_sha256(value, ensure_ascii=False) == hashlib.sha256('{"a": 1, "b": "\u00e9"}'.encode()).hexdigest()
    assert json_sha256({"a": {1}}, default=sorted) == hashlib.sha256(b'{"a": [1]}').hexdigest()


def test_a_file_is_read_once_while_its_time_and_size_stay_and_again_when_it_has_just_changed(tmp_path, monkeypatch):
    path, read = tmp_path / "a.bin", []
    monkeypatch.setattr(files, "sha256", lambda of: read.append(of) or of.read_bytes().decode())
    path.write_bytes(b"abc")
    assert [files.known_sha256(path), files.known_sha256(path)] == ["abc", "abc"]
    assert len(read) == 2  # it is too young
    os.utime(path, (1, 1))
    assert [files.known_sha256(path), files.known_sha256(path)] == ["abc", "abc"]
    assert len(read) == 3
    path.write_bytes(b"xyz")
    os.utime(path, (2, 2))
    assert files.known_sha256(path) == "xyz"


def test_checking_a_folder_and_asking_for_a_digest_reads_a_file_once(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    seal_folder(tmp_path)
    os.utime(tmp_path / "model.safetensors", (1, 1))
    read, real = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path.name) or real(path))
    assert folder_damage(tmp_path) is None
    assert files.known_sha256(tmp_path / "model.safetensors") == hashlib.sha256(b"weights").hexdigest()
    assert read == ["model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"weightt")
    assert folder_damage(tmp_path) == f"{tmp_path / 'model.safetensors'} {CHANGED}"
