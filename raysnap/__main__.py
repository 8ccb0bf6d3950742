"""`python -m raysnap` is `raysnap`."""

import sys

from raysnap.cli import main

sys.exit(main())
