"""What the centre learns from, as a dataset to be trusted: near-duplicates folded, conflicts listed, versions kept.

Pure rules over columns of labelled pictures; `cloud.learning.curator` reads the store and applies them.
"""
