"""Pages that show and play what a model made of songs; each opens from the disk and asks no network for anything."""
