#!/usr/bin/env bash
# Runs the tests of an extra that is not part of dev, in a temporary environment on top of this one:
#   ./run ./tests/extras.sh trackio      (needs pillow < 13)
#   ./run ./tests/extras.sh ray          (needs cloudpickle < 3, about 400 MB)
#   ./run ./tests/extras.sh triton       (286 MB; its kernels in its interpreter, no GPU needed)
set -euo pipefail
cd "$(dirname "$0")/.."
pins=() # those of the first two contradict constraints.txt
case "${1:-}" in
trackio) tests=(tests/loggers/test_sweep.py) ;;
ray) tests=(tests/cli/test_launchers.py -k ray) ;;
triton) tests=(tests/runtime/test_gpu.py) pins=(-c constraints.txt) ;;
*)
    echo "usage: tests/extras.sh trackio|ray|triton" >&2
    exit 4
    ;;
esac
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python -m venv "$place"
below=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
above=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$below" >"$above/below.pth"
wanted=$(python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])' "$1")
# shellcheck disable=SC2086
"$place/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}" $wanted || exit 1
[ -x "$place/bin/wandb" ] || ln -s "$(command -v wandb)" "$place/bin/wandb"
RAY_USAGE_STATS_ENABLED=0 PYTHONPATH="$PWD" "$place/bin/python" -m pytest -n 0 -m slow -rs "${tests[@]}"
