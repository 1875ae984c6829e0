"""Data sets: each module has a `find(root) -> dict[split, Index]` that says which files hold which stems."""
