"""`python -m pvdm_cli`, as launchers start it."""

from pvdm_cli.cli.app import main

main()
