"""The names of the steps, in the order of the graph."""

STEPS = (
    "ingest",
    "validate",
    "curate",
    "validate-curated",
    "tokenize",
    "train",
    "calibrate",
    "export",
    "benchmark",
    "gate",
    "promote",
)
