"""Everything that is written about a mechanism, drawn from its class alone.

``foveate show``, the tables of the README and the pages of the documentation come from here.
``python -m foveate.describe`` writes the tables and the pages.
"""
