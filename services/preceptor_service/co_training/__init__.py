"""Co-training: which step trains which version of an online model, and the journal of what it trains on."""
