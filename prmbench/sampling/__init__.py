"""Samples and verifies completions: rollouts for training, a policy's answers, Monte-Carlo values of prefixes."""
