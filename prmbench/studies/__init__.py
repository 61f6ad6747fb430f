"""The studies of this project, and the demo. They import the library; only the command line imports them."""
