"""`python -m raysnap` is `raysnap`."""

from raysnap.cli.process import run

run()
