"""The package's foundation: records, result files, provenance, validation, processes, progress. No metrics."""
