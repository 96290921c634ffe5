"""What `conclave report RUN_DIR` shows of a run: one HTML page with everything in it, to be opened from a disk or sent by mail.

`run.py` reads a run's folder, `charts.py` and `load_charts.py` draw (matplotlib, as SVG: sharp, selectable text, no script, a few hundred kilobytes),
`page.py` sets the page.
"""
