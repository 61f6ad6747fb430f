"""`prmbench push`: models, cards, results and scores to the Hugging Face hub."""
