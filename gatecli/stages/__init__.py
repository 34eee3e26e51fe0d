"""The commands as functions, one file each, and what several of them share."""
