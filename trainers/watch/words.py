"""Figures as a page says them."""


def figure(value: float) -> str:
    """Return a number in as many digits as are worth reading.

    Example:
        >>> figure(81307.0), figure(12.345), figure(0.00321)
        ('81,307', '12.35', '0.00321')
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
