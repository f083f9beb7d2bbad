"""Run every benchmark."""

from . import analysis, data, demo, growth, loading, scaling, training

analysis.main()
demo.main()
data.main()
loading.main()
training.main()
growth.main()
scaling.main()
