"""`python -m tests.reliability [proof …]`: proves what docs/reliability.md promises, and writes its table.

`fuzz` stands for every proof whose name begins with `fuzz-`, and so on. Exits with 1 where a promise was not kept.
`--short` takes seconds for each and writes nothing.
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
    proofs = tuple(suite(short=False).members)
    parser.add_argument(
        "names", nargs="*", help=f"which of {', '.join(proofs)}, or how these begin; default: all", metavar="proof"
    )
    parser.add_argument("--short", action="store_true", help="a form of seconds; writes nothing")
    options = parser.parse_args(arguments)
    asked = list(proofs) if not options.names else []
    for name in options.names:
        meant = [proof for proof in proofs if f"{proof}-".startswith(f"{name}-")]
        if not meant:
            parser.error(f"there is no proof {name!r}; choose from {', '.join(proofs)}")
        asked += meant
    console = Console(width=None if sys.stdout.isatty() else 120)
    return int(suite(options.short).measure(asked, console, save=not options.short))


if __name__ == "__main__":
    sys.exit(main())
