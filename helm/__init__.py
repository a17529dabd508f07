"""The chart, and what is written for it.

gotohotel  the chart itself
rendering  renders it, with Helm's own engine
generate   writes what follows from other files
"""
