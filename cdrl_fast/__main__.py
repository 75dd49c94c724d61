import sys

from cdrl_fast.cli.main import main

sys.exit(main())
