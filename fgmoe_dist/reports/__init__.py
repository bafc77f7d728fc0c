"""One self-contained HTML page on a set of scored predictions: figures, charts, and the images worth looking at.

`page` puts it together, `charts` draws SVG, `figures` says which charts a meter has, `examples` picks and draws images.
"""
