"""The part of a photograph that a detector sees, and where in a photograph that is."""

from dataclasses import dataclass
from typing import NamedTuple

from ahl_jax.data.arrays import Box, Placement

Share = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of a width and a height."""


def pixels(share: Share, width: int, height: int) -> Share:
    """Shares as pixels of a rectangle of that size."""
    left, top, right, bottom = share
    return left * width, top * height, right * width, bottom * height


class Seen(NamedTuple):
    """The same rectangle twice: in a photograph, and in what a detector sees of it."""

    photograph: Share = (0, 0, 1, 1)
    canvas: Share = (0, 0, 1, 1)


WHOLE = Seen()
"""All of a photograph, stretched over all that a detector sees."""


class CropError(ValueError):
    """A photograph is not as large as the crop takes it to be."""


@dataclass(frozen=True)
class Frame:
    """How photographs of any size become images of one size."""

    width: int
    height: int
    """Pixels of the images."""

    crop: Box | None = None
    """Left, top, width and height in pixels of the photograph as it is seen; all of it by
    default."""

    keep_aspect: bool = False
    """Leave a margin where the photograph has another shape, instead of stretching it."""

    def place(self, width: int, height: int) -> Placement:
        """Where a photograph of that size goes.

        Raises:
            CropError: if the crop is not within it.
        """
        box: Box | None = None
        if self.crop is not None:
            left, top, width_of_crop, height_of_crop = self.crop
            box = left, top, left + width_of_crop, top + height_of_crop
            if box[2] > width or box[3] > height:
                raise CropError(
                    f"{width} x {height} pixels, which the crop {' '.join(map(str, self.crop))} "
                    "goes beyond"
                )
            width, height = width_of_crop, height_of_crop
        canvas = self.width, self.height
        if not self.keep_aspect:
            return Placement(canvas, canvas, box)
        scale = min(self.width / width, self.height / height)
        return Placement((max(1, round(width * scale)), max(1, round(height * scale))), canvas, box)

    def seen(self, width: int, height: int) -> Seen:
        """Where in a photograph of that size the images lie.

        Raises:
            CropError: as by ``place``.
        """
        place = self.place(width, height)
        left, top, right, bottom = place.box or (0, 0, width, height)
        (x, y), (w, h) = place.corner, place.size
        return Seen(
            (left / width, top / height, right / width, bottom / height),
            (x / self.width, y / self.height, (x + w) / self.width, (y + h) / self.height),
        )

    def shrinking(self, width: int, height: int) -> float:
        """How many pixels of a photograph of that size, in a line, become one.

        Raises:
            CropError: as by ``place``.
        """
        place = self.place(width, height)
        left, top, right, bottom = place.box or (0, 0, width, height)
        return max((right - left) / place.size[0], (bottom - top) / place.size[1])


def square(size: int) -> Frame:
    """All of a photograph as ``size`` x ``size`` pixels."""
    return Frame(size, size)
