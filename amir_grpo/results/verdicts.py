"""The verdict on a claim, from the interval and the p-value of its test."""

from amir_grpo.choices import SIGNIFICANCE

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "not distinguishable"


def verdict(low: float, high: float, p_value: float = 0.0) -> str:
    """What a test says of the claim that a quantity is above 0.

    Args:
        low, high: Ends of the quantity's interval; equal where only its sign is known.
        p_value: Of the same test, corrected where several are shown together; 0 where the interval alone decides.
    """
    if not p_value < SIGNIFICANCE:
        return OPEN
    return SUPPORTED if low > 0 else REFUTED if high < 0 else OPEN
