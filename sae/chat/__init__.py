"""Chat LMs: a server, or the LM under study. Replies are kept on disk, a budget limits tokens.

A `Desk` asks, a `Client` answers (`Endpoint`, `Local`), the `Ledger` keeps replies.
"""
