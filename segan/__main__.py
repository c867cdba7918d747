"""`python -m segan`, the same as the command `segan`."""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
