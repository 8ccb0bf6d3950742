"""`python -m raysnap` is `raysnap`."""

import sys

from raysnap.cli.app import main

sys.exit(main())
