"""Files of this machine and files behind URLs: where they are, and how they are read from there."""
