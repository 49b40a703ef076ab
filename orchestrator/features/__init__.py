"""Features: outputs of frozen backbone prefixes, computed once and read by many trials."""
