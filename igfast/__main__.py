"""`python -m igfast`."""

import sys

from igfast.cli import main

sys.exit(main())
