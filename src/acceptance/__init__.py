"""The acceptance check: what this project needs of a device, tried on it. `python -m src.acceptance --help`."""
