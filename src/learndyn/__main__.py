"""`python -m learndyn` is the command line."""

import sys

from learndyn.cli import main


sys.exit(main())
