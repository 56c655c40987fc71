"""Pictures of what an agent sees, and of the abstract state that it makes of it."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

_PAPER, _INK, _FAINT, _NOW = (255, 255, 255), (34, 34, 34), (190, 190, 190), (213, 94, 0)
_REACH = 1.25
"""Abstract coordinates that fit into a drawing of vectors; the range loss keeps them within 1."""


def seen(pictures: Float[np.ndarray, "T height width"], size: int) -> UInt8[np.ndarray, "T size size2 3"]:
    """What is seen at each time, in grey: black for the lowest and white for the highest of all pixels."""
    low, high = pictures.min(), pictures.max()
    grey = np.rint(255 * (pictures - low) / max(high - low, 1e-6)).astype(np.uint8)
    return np.stack([_enlarged(Image.fromarray(one).convert("RGB"), size) for one in grey])


def abstract(states: Float[np.ndarray, "T *abstract"], size: int) -> UInt8[np.ndarray, "T size size 3"]:
    """The abstract state at each time.

    A map becomes an image whose colours are its first three channels, from -1 to 1; a vector becomes a point among
    those of the whole episode, by its first two coordinates.
    """
    if states.ndim == 2:
        return np.stack([_point(states, now, size) for now in range(len(states))])
    colours = np.zeros((*states.shape[:3], 3))
    colours[..., : states.shape[3]] = states[..., :3]
    pixels = np.rint(255 * np.clip((colours + 1) / 2, 0, 1)).astype(np.uint8)
    return np.stack([_enlarged(Image.fromarray(one), size) for one in pixels])


def _enlarged(image: Image.Image, size: int) -> np.ndarray:
    """Every pixel a rectangle, as high as `size`."""
    width = round(size * image.width / image.height)
    return np.asarray(image.resize((width, size), Image.Resampling.NEAREST))


def _point(states: Float[np.ndarray, "T width"], now: int, size: int) -> np.ndarray:
    image = Image.new("RGB", (size, size), _PAPER)
    draw = ImageDraw.Draw(image)
    plane = np.zeros((len(states), 2))
    plane[:, : states.shape[1]] = states[:, :2]
    places = size / 2 * (1 + plane / _REACH * (1, -1))
    unit = size / 2 / _REACH
    draw.rectangle((size / 2 - unit, size / 2 - unit, size / 2 + unit, size / 2 + unit), outline=_FAINT)
    draw.line([tuple(place) for place in places[: now + 1]], fill=_FAINT)
    for place, colour, radius in [*((p, _INK, size / 120) for p in places), (places[now], _NOW, size / 45)]:
        x, y = place
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image)
