"""The command line."""

from zooprune.cli.commands import app, main

__all__ = ["app", "main"]
