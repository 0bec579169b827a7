"""The verbs of the command line, one file each.

A verb's module has ``HELP`` (one line), ``DESCRIPTION`` (what it teaches, with examples),
``add_arguments(parser)`` and ``run(args)``, which returns the exit status.
"""
