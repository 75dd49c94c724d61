import sys

from cdrl_fast.cli import main

sys.exit(main())
