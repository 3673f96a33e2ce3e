"""The report: one self-contained HTML page for each experiment, its records embedded."""
