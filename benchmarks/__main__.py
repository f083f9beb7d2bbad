"""Run every benchmark."""

from . import analysis, data, demo, download, loading

analysis.main()
demo.main()
data.main()
loading.main()
download.main()
