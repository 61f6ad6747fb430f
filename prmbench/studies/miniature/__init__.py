"""The miniature study: worlds of one seed each, reward models trained and judged on them, many seeds, tuning."""
