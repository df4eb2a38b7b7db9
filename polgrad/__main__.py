"""`python -m polgrad`: the command line, where the `polgrad` script is not on the path."""

from polgrad.cli import main

main()
