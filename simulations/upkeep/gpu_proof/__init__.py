"""`make gpu-proof`: everything about a GPU that is to be settled, measured on one card and written to one folder.

It needs this checkout, a PyTorch, NumPy, SciPy, Pillow and the packages of `needs.WHEELS`: neither Flower nor Ray.
Without a card the same path runs at toy size on the CPU, so that it is whole on the day when there is one.
"""
