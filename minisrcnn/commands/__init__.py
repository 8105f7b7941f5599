"""The commands of the command line, one file each, and ``terminal``: how they all speak."""
