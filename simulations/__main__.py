"""`python -m simulations` and the console script `headframe`: parses, calls, turns our errors into sentences."""

import sys

from common.errors import HeadframeError
from common.quiet import silence_flower


def main() -> None:
    """Run the command line; exit status 2 for what a person can mend, 1 otherwise."""
    silence_flower()
    from simulations.cli import app

    try:
        app()
    except HeadframeError as error:
        sys.stderr.write(f"headframe: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
