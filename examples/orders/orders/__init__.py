"""An order service, the load on it, and the ledger that knows what became of every order."""
