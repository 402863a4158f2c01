"""A figure as others see it: in colour, in grey, and with deuteranopia, one below the other.

python -m tools.vision figures/main.png sheet.png
"""

from __future__ import annotations

import sys

import numpy as np
from matplotlib.image import imread, imsave
from numpy.typing import NDArray

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear RGB


def deuteranopia(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """An sRGB image (height, width, 3; 0 to 1) as a reader without green cones sees it."""
    return _encoded(np.clip(_linear(image) @ _DEUTERANOPIA.T, 0, 1))


def grey(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """An sRGB image in grey, of the same luminance."""
    return np.repeat(_encoded(_linear(image) @ _LUMINANCE)[..., None], 3, axis=2)


def _linear(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def _encoded(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-12) ** (1 / 2.4) - 0.055)


if __name__ == "__main__":
    seen = imread(sys.argv[1])[..., :3].astype(float)
    imsave(sys.argv[2], np.clip(np.vstack([seen, grey(seen), deuteranopia(seen)]), 0, 1))
