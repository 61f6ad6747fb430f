"""Training of policies and reward models: the loop (train.py), its parts, and the set-up that rl/ shares."""
