"""Build a table's dashboards in Weights & Biases."""

from lit_prune.cli.dashboard import main

if __name__ == "__main__":
    raise SystemExit(main())
