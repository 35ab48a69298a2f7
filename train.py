"""`python train.py ...` is `prunekit train ...`."""

import sys

from prunekit.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
