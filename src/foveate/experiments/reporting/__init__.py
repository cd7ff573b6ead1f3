"""From finished runs to verdicts, tables and a page."""
