"""One self-contained HTML page on a set of scored predictions: figures, charts, and the images worth looking at.

`page` puts it together, `examples` picks and draws images; which charts its meter has is for each task to say.
"""
