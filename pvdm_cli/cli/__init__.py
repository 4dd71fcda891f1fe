"""The command line: parse, call `pvdm_cli.api`, render."""
