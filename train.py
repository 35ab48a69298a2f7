"""`python train.py ...` is `prunekit train ...`."""

from prunekit.cli import main

if __name__ == "__main__":
    main()
