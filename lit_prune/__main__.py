"""`python -m lit_prune`: the same as `lit-prune`."""

from lit_prune.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
