"""Run every benchmark."""

from . import analysis, demo

analysis.main()
demo.main()
