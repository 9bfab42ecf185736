"""The command line, `fedmutual`."""
