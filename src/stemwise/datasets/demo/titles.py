"""What the demo songs are called."""

import numpy as np

FIRST = (
    "Paper", "Amber", "Midnight", "Velvet", "Distant", "Copper", "Silver", "Sunday", "Electric",
    "Hollow", "Northern", "Quiet", "Salt", "Second", "Slow", "Tiny", "Winter", "Yellow", "Borrowed",
    "Broken", "Crooked", "Early", "Faded", "Gentle", "Golden", "Honest", "Late", "Lucky", "Mechanical",
    "Neon", "Open", "Patient", "Plastic", "Rainy", "Restless", "Secret", "Sleepy", "Summer", "Tangled",
    "Wooden",
)  # fmt: skip
SECOND = (
    "Lanterns", "Harbour", "Telephone", "Garden", "Machine", "Weather", "Postcards", "Elevator",
    "Orchard", "Mirrors", "Bicycle", "Window", "Rivers", "Satellite", "Kitchen", "Highway", "Feathers",
    "Station", "Umbrella", "Letters", "Carousel", "Lighthouse", "Shadows", "Parade", "Balcony",
    "Signals", "Compass", "Ferris Wheel", "Headlights", "Island", "Jukebox", "Kites", "Meadow",
    "Pigeons", "Rooftops", "Sparrow", "Staircase", "Tambourine", "Thunder", "Waltz",
)  # fmt: skip


def title(number: int, seed: int) -> str:
    """The title of one song; no two of the first 1600 numbers share one."""
    count = len(FIRST) * len(SECOND)
    first, second = divmod(int(np.random.default_rng(seed).permutation(count)[number % count]), len(SECOND))
    return f"{FIRST[first]} {SECOND[second]}"
