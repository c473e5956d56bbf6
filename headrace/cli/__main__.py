"""`python -m headrace.cli`, which needs no installed entry point."""

from headrace.cli import main

main()
