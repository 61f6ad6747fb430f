"""The miniature studies: tiny worlds with an exact oracle, reward models trained and judged on them, and policies."""
