"""headrace next to what else would do its work: see __main__.py."""
