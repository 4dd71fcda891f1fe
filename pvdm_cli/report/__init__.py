"""A page about one or several training runs: read, drawn and written without torch."""
