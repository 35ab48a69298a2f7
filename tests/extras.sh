#!/usr/bin/env bash
# Installs what is not part of dev in a temporary environment, and tries it:
#   ./run ./tests/extras.sh trackio              (needs pillow < 13)
#   ./run ./tests/extras.sh ray                  (needs cloudpickle < 3, about 400 MB)
#   ./run ./tests/extras.sh triton               (286 MB; its kernels in its interpreter, no GPU needed)
#   ./run ./tests/extras.sh wheel                the wheel and the sdist: built, checked, and installed without and with each extra
#   ./run ./tests/extras.sh wheel serve export   only these extras; PYTHONS="python3.12 python3.13" other interpreters
# The first three run their tests in an environment on top of this one; `wheel` makes a new one for each interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
extras() { python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"])'; }

# Builds both, and installs the wheel as a user would. The versions are those of constraints.txt, which trackio and ray contradict.
distribution() {
    python -m hatchling build -t wheel -t sdist -d "$place/dist"
    python -m venv "$place/twine"
    "$place/twine/bin/pip" install --quiet --disable-pip-version-check twine
    "$place/twine/bin/twine" check --strict "$place"/dist/*
    wheel=$(echo "$place"/dist/*.whl)
    for interpreter in ${PYTHONS:-python}; do
        env="$place/env-$(basename "$interpreter")"
        "$interpreter" -m venv "$env"
        for extra in "" "$@"; do
            pins=(-c constraints.txt)
            case "$extra" in trackio | ray) pins=() ;; esac
            start=$SECONDS
            # on top of the former: what two extras contradict each other in, `pip check` tells
            "$env/bin/pip" install --quiet --disable-pip-version-check --no-compile "${pins[@]}" "$wheel${extra:+[$extra]}"
            "$env/bin/pip" check --quiet
            # from another folder, so that nothing of the clone is found
            (cd "$place" && "$env/bin/prunekit" --help >/dev/null && "$env/bin/prunekit" train --cfg job >/dev/null &&
                "$env/bin/python" -c 'import prunekit; prunekit.load, prunekit.task_of')
            echo "$("$env/bin/python" --version), prunekit${extra:+[$extra]}: installed and started ($((SECONDS - start)) s)"
        done
        rm -rf "$env"
    done
}

pins=() # those of the first two contradict constraints.txt
case "${1:-}" in
trackio) tests=(tests/loggers/test_sweep.py) ;;
ray) tests=(tests/cli/test_launchers.py -k ray) ;;
triton) tests=(tests/runtime/test_gpu.py) pins=(-c constraints.txt) ;;
wheel)
    shift
    # shellcheck disable=SC2046
    [ $# -gt 0 ] || set -- $(extras)
    distribution "$@"
    exit 0
    ;;
*)
    echo "usage: tests/extras.sh trackio|ray|triton, or tests/extras.sh wheel [EXTRA ...]" >&2
    exit 4
    ;;
esac
python -m venv "$place"
below=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
above=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$below" >"$above/below.pth"
wanted=$(python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])' "$1")
# shellcheck disable=SC2086
"$place/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}" $wanted || exit 1
[ -x "$place/bin/wandb" ] || ln -s "$(command -v wandb)" "$place/bin/wandb"
RAY_USAGE_STATS_ENABLED=0 PYTHONPATH="$PWD" "$place/bin/python" -m pytest -n 0 -m slow -rs "${tests[@]}"
