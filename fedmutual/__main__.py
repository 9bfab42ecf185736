"""`python -m fedmutual` is the command `fedmutual`."""

from simulations.cli.app import main

main()
