"""The command line: it parses, calls one library function a command, and prints.

Nothing here imports torch before it must.
"""
