"""The parts of DistRL: completions, forward passes, advantages, updates, monitors. distrl.py puts them in order."""
