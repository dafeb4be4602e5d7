"""Summary statistics of a metric over cases."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

#: The percentiles usually reported with the median (Hu et al. 2018, Table 1).
PERCENTILES = (10, 25, 75, 90)


def percentile_summary(values: Iterable[float]) -> dict[str, float | int]:
    """Summarise the values of a metric, one per case; NaN marks a case that could not be measured.

    Returns:
        ``n`` (measured), ``missing`` (NaN), ``mean``, ``std`` (of the sample, n − 1), ``median``, ``p10``, ``p25``,
        ``p75``, ``p90``; NaN where there are too few values.
    """
    everything = np.asarray(list(values), dtype=np.float64)
    known = everything[~np.isnan(everything)]
    summary: dict[str, float | int] = {"n": known.size, "missing": everything.size - known.size}
    if known.size == 0:
        names = ("mean", "std", "median", *(f"p{p}" for p in PERCENTILES))
        return summary | dict.fromkeys(names, float("nan"))
    summary["mean"] = float(known.mean())
    summary["std"] = float(known.std(ddof=1)) if known.size > 1 else float("nan")
    summary["median"] = float(np.median(known))
    for percent, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True):
        summary[f"p{percent}"] = float(value)
    return summary
