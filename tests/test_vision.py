"""What a figure looks like to others: matrices of the tool against published values and what they must keep."""

import numpy as np
import pytest

from amir_grpo.results.style import COLOURS
from tools.vision import deuteranopia, grey


def pixel(colour):
    return np.array([[[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]]])


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_greys_stay_what_they_are(level):
    image = np.full((1, 1, 3), level)
    np.testing.assert_allclose(grey(image), image, atol=1e-3)
    np.testing.assert_allclose(deuteranopia(image), image, atol=2e-3)


def test_red_and_green_of_one_brightness_are_hard_to_tell_apart_without_green_cones():
    red, green = pixel("#c00000"), pixel("#5a7000")
    assert np.abs(red - green).max() > 0.35
    assert np.abs(deuteranopia(red) - deuteranopia(green)).max() < 0.2


def test_the_methods_are_told_apart_in_grey_and_without_green_cones():
    grpo, amir_grpo = pixel(COLOURS["grpo"]), pixel(COLOURS["amir_grpo"])
    for seen in (grey, deuteranopia):
        assert np.abs(seen(grpo) - seen(amir_grpo)).max() > 0.3
