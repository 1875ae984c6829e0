"""What sound files are made of: their formats, and the way from samples to bytes and back."""
