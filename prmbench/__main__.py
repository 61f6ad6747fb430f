"""`python -m prmbench`."""

from prmbench.cli import main

main()
