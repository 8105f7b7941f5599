"""The commands of the command line, one file each, and ``terminal``: what they share."""
