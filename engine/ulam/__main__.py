"""`python -m ulam`."""

import sys

from .cli.main import main

sys.exit(main())
