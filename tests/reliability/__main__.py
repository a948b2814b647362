"""`python -m tests.reliability [proof …]`: proves what docs/reliability.md promises, and writes its table.

Exits with 1 where a promise was not kept. `--short` takes seconds for each and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from tests.reliability.proofs import suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="Prove what Preceptor promises.")
    names = tuple(suite(short=False).members)
    parser.add_argument("names", nargs="*", choices=[[], *names], help="which; default: all", metavar="proof")
    parser.add_argument("--short", action="store_true", help="a form of seconds; writes nothing")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    return int(suite(options.short).measure(options.names or names, console, save=not options.short))


if __name__ == "__main__":
    sys.exit(main())
