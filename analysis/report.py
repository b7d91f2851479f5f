"""Write the paper-reproduction report: every table and claim on one page, and as files."""

from lit_prune.cli.report import main

if __name__ == "__main__":
    raise SystemExit(main())
