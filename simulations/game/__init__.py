"""The theory's game, solved and played: `fedmutual game`."""
