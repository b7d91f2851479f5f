"""The commands: the only place with console output, signals and exit codes."""
