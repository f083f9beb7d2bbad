"""Run every benchmark."""

from . import analysis, data, demo, download, growth, loading, scaling, startup, training

startup.main()
analysis.main()
demo.main()
data.main()
loading.main()
download.main()
training.main()
growth.main()
scaling.main()
