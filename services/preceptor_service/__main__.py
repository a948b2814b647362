"""`python -m preceptor_service` and the `preceptor` command."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line, or says which extra it needs."""
    # Without it gRPC, once imported, tells of every handshake that fails on standard error, beside what we say of it,
    # and quotes what strangers send, as often as they please.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from preceptor_service.cli.main import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("preceptor"):
            raise
        sys.exit(f"preceptor: {error.name} is not installed; run: pip install 'preceptor[service]'")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    app()


if __name__ == "__main__":
    main()
