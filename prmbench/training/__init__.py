"""What training loops are made of: examples, batches, the model's forward pass, reference, optimiser, files."""
