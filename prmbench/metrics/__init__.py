"""Numbers from arrays, in numpy: no file, no option, no model."""
