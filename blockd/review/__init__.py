"""Apps under review: how much each is used, what a block would have touched, and what was decided."""
