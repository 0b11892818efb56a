"""Two runs beside each other, as people compare them: what their results answer, and how well.

Not to be confused with `hone/comparison.py`, which says whether two runs are the same bytes.
"""
