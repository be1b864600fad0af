"""Figures and times as a page says them."""


def span(seconds: float) -> str:
    """Return a time as people say it.

    Example:
        >>> span(42.3), span(150), span(3600), span(200_000)
        ('42 s', '2 min 30 s', '1 h', '2 d 7 h')
    """
    whole = max(int(seconds), 0)
    for unit, each, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= each:
            rest = whole % each // part
            return f"{whole // each} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def figure(value: float) -> str:
    """Return a number in as many digits as are worth reading.

    Example:
        >>> figure(81307.0), figure(12.345), figure(0.00321)
        ('81,307', '12.35', '0.00321')
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
