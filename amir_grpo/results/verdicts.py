"""The verdict on a claim, from the interval and the p-value of its test."""

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "not distinguishable"


def verdict(low: float, high: float) -> str:
    """What an interval says of a claim that the quantity is above 0."""
    return SUPPORTED if low > 0 else REFUTED if high < 0 else OPEN
