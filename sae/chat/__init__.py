"""Chat LMs: a server, or the LM under study; every reply is kept, and a budget stops.

A `Desk` asks, a `Client` answers (`Endpoint`, `Local`), the `Ledger` keeps replies.
"""
