"""Pictures: files, colour, resizing, patches, data sets, scores.

It knows nothing of networks.
"""
