"""The studies of this project and the demo, built on the library.

They import the library; of the package, only the command line imports them.
"""
