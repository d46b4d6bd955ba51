"""Work that is done once for each set of inputs, whole or not at all, and is put into place in one step.

May import `lanes` and the ground modules.
"""
