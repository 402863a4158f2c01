"""The sliders of notebook 01 (ipywidgets): each redraws one picture, which stands alone on a page without a kernel."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

Picture = Callable[[Sequence[float], float, float, float], bytes]


class _WithPicture(ipywidgets.VBox):
    """A box whose output holds its picture, too: for GitHub, the docs and every page that shows no widgets."""

    picture: ipywidgets.Image

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**kwargs) | {"image/png": base64.b64encode(self.picture.value).decode()}


def sliders(
    picture: Picture, rewards: Sequence[float], lambda_reg: float, beta_dpo: float, reward_margin: float, width: int
) -> ipywidgets.VBox:
    """Sliders for λ, β, δ and each reward above the picture that `picture` draws of them, in this order, as PNG.

    Args:
        picture: Called with (rewards, λ, β, δ) whenever a slider is let go.
        rewards, lambda_reg, beta_dpo, reward_margin: What is shown first, and again after "start again".
        width: Of the picture, in pixels.
    """
    image = ipywidgets.Image(format="png", width=width)
    settings = [
        _logarithmic("λ", lambda_reg, -3, 1),
        _logarithmic("β", beta_dpo, -2, 2),
        _linear("δ", reward_margin, 3.5, 0.1, "horizontal"),
    ]
    each = [_linear(str(number), reward, 3.5, 0.1, "vertical") for number, reward in enumerate(rewards, 1)]
    start = [slider.value for slider in (*settings, *each)]
    again = ipywidgets.Button(description="start again")
    redrawing = True

    def redraw(_: object = None) -> None:
        if redrawing:
            image.value = picture([slider.value for slider in each], *(slider.value for slider in settings))

    def reset(_: object) -> None:
        nonlocal redrawing
        redrawing = False  # once for all sliders, not once for each
        for slider, value in zip((*settings, *each), start, strict=True):
            slider.value = value
        redrawing = True
        redraw()

    for slider in (*settings, *each):
        slider.observe(redraw, "value")
    again.on_click(reset)
    redraw()
    box = _WithPicture(
        [
            ipywidgets.HBox([*settings, again], layout={"flex_flow": "row wrap"}),
            ipywidgets.Label("reward of each completion"),
            ipywidgets.HBox(each),
            image,
        ]
    )
    box.picture = image
    return box


def _logarithmic(name: str, value: float, least: int, most: int) -> ipywidgets.FloatLogSlider:
    """From 10 ** least to 10 ** most."""
    return ipywidgets.FloatLogSlider(
        value, base=10, min=least, max=most, step=0.1, description=name, readout_format=".3g", continuous_update=False
    )


def _linear(name: str, value: float, most: float, step: float, orientation: str) -> ipywidgets.FloatSlider:
    """From 0 to `most`, or to the value where that is more."""
    layout = {"height": "160px", "width": "72px"} if orientation == "vertical" else {}
    return ipywidgets.FloatSlider(
        value,
        min=0,
        max=max(most, value),
        step=step,
        description=name,
        orientation=orientation,
        readout_format=".2f",
        continuous_update=False,
        layout=layout,
    )
