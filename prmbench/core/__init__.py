"""What everything else stands on: records, result files, provenance, validation, processes, progress. No metric."""
