"""A disk that is full while a run writes to it; needs the right to mount one."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from campaign.frame import DEAD_END, REFUSED, SAME, SILENT, Case, place_for
from campaign.small_runs import JOBS, differing, finished
from prunekit.config.errors import CRASHED, ConfigError

TITLE = "disks that are full"
LONG, SHORT = 100, 1
METHODS = ("top", "topk", "wanda", "dpruner")
ROOM = 64  # MiB, once there is room


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield disks: a method, and the KiB that the disk holds at first; none without the right to mount."""
    if not may_mount(folder):
        return
    for _ in range(count):
        name, room = rng.choice(METHODS), rng.randint(100, 1500)
        yield Case(f"{name}, {room} KiB", partial(attack, name, room, folder))


@cache
def may_mount(folder: Path) -> bool:
    """Return whether a file system in memory can be mounted."""
    with place_for("probe", folder) as place:
        done = mount(place, "size=64k")
        if done:
            subprocess.run(["umount", place], check=True)
    return done


def mount(place: Path, options: str) -> bool:
    """Mount a file system in memory; return whether that worked."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def attack(name: str, room: int, folder: Path) -> str:
    """Run on a small disk, enlarge it, and give the same command again."""
    job, wanted = JOBS[name], JOBS[name].truth(finished(name, folder))
    with place_for("disk", folder) as place:
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
                except ConfigError as again:
                    return f"{DEAD_END}: {again}"
            found = job.truth(place)
            return outcome if found == wanted else f"{SILENT}: {differing(found, wanted)}"
        finally:
            subprocess.run(["umount", "-l", place], check=True)
