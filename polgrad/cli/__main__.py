"""`python -m polgrad.cli`: the command line."""

from polgrad.cli import main

main()
