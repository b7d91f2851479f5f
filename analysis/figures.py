"""Write the figures of a table as SVG, PDF or PNG."""

from lit_prune.cli.figures import main

if __name__ == "__main__":
    raise SystemExit(main())
