"""Run every benchmark."""

from . import data, demo

demo.main()
data.main()
