"""DistRL: the training loop (distrl.py) and its parts."""
