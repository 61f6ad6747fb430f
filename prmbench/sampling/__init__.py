"""Completions of prompts, verified: rollouts for training, a policy's own answers, Monte-Carlo values of prefixes."""
