"""Run every benchmark."""

from . import analysis, data, demo, loading

analysis.main()
demo.main()
data.main()
loading.main()
