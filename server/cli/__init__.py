"""The command line: `headrace …`, one module a command."""
