"""Channel analysis, plans, rewriting, and the oracle that checks them."""
