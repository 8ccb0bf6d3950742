"""Charts of a report: pure functions from data to inline SVG, with axes, units, labels and tooltips.

Every datum is one element of class `mark` that carries its own `<title>`. Colours are CSS classes, which
templates/report.css gives their light, dark and print values.
"""
