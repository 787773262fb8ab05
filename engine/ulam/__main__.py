"""`python -m ulam`."""

import sys

from .cli import main

sys.exit(main())
