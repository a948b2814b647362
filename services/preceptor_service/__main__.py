"""`python -m preceptor_service` and the `preceptor` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says which extra it needs."""
    try:
        from preceptor_service.cli.main import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("preceptor"):
            raise
        sys.exit(f"preceptor: {error.name} is not installed; run: pip install 'preceptor[service]'")
    app()


if __name__ == "__main__":
    main()
