"""`python -m fedmutual` is the command `fedmutual`: modules that lie where the user stands change nothing."""

import os
import sys

if os.path.abspath(sys.path[0]) == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from simulations.cli.app import main

main()
