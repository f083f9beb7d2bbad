"""Run every benchmark."""

from . import demo

demo.main()
