"""How the files of a dataset become pixels."""

from dataclasses import dataclass
from typing import Literal

Pages = Literal["first", "all", "channels"]
CropMode = Literal["centre", "squash"]  # whether evaluation keeps the proportions of an image
MOST_CHANNELS = 16
READING = ("white_level", "channels", "value_range", "pages")  # settings of the data that are in a ``Reading``


@dataclass(frozen=True)
class Reading:
    """What determines the pixels of a file besides its bytes: the settings ``data.*`` of the same names.

    Attributes:
        channels: 1 to 16: that many, with all of their bits, as numbers in [0, 1]; 0: three colours of 8 bits; -1: as
            many as the first image has.
        white_level: the level of white in images of more than 8 bits; 0: that of their format.
        value_range: the values that become 0 and 1 if ``channels`` is not 0; None: those of the format.
        pages: which pages or frames of a file are images: the first, each, or all together as channels of one.
    """

    channels: int = 0
    white_level: int = 0
    value_range: tuple[float, float] | None = None
    pages: Pages = "first"


COLOURS = Reading()
