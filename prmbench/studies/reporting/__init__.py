"""The studies in a report: the paper's claims, the tables and figures that answer them, a row per checkpoint."""
