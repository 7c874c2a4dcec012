"""`python -m steer_heal heal | dose | eval | vector | results | export | doctor`."""

import sys

from steer_heal.cli import main

if __name__ == "__main__":
    sys.exit(main())
