"""The acceptance check: whether this machine can do what the project needs. `python -m src.acceptance --help`."""
