"""A disk that is full, or becomes read only, while a run writes to it; needs the right to mount one."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from campaign.frame import DEAD_END, REFUSED, SAME, SILENT, Case
from campaign.small_runs import JOBS, Job
from prunekit.config.errors import CRASHED, ConfigError

TITLE = "full disks"
ROOM = 64  # MiB, once there is room


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield disks: a method, and the KiB that the disk holds at first; none without the right to mount."""
    if not mount(folder / "probe", "size=64k"):
        return
    subprocess.run(["umount", folder / "probe"], check=True)
    truths: dict[str, dict[str, str]] = {}
    for number in range(count):
        name, room = rng.choice(["top", "topk", "wanda"]), rng.randint(100, 3000)
        if name not in truths:
            JOBS[name].run(folder / name)
            truths[name] = JOBS[name].truth(folder / name)
        place = folder / f"case-{number}"
        yield Case(f"{name}, {room} KiB", partial(attack, JOBS[name], place, room, truths[name]))


def mount(place: Path, options: str) -> bool:
    """Mount a file system in memory; return whether that worked."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def attack(job: Job, place: Path, room: int, truth: dict[str, str]) -> str:
    """Run on a small disk, enlarge it, and give the same command again."""
    assert mount(place, f"size={room}k")
    try:
        outcome = SAME
        try:
            job.run(place)
        except ConfigError as error:
            lines = str(error).splitlines()
            if len(lines) != 3 or error.exit_code != CRASHED or " free)" not in lines[0]:
                raise
            outcome = REFUSED
            subprocess.run(["mount", "-o", f"remount,size={ROOM}m", place], check=True)
            try:
                job.run(place)
            except ConfigError:
                return DEAD_END
        return outcome if job.truth(place) == truth else SILENT
    finally:
        subprocess.run(["umount", "-l", place], check=True)
