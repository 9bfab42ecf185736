"""Private long-tailed data: where it comes from and how one class's part is cut."""
