"""Lightning callbacks and loggers, one a file; each works alone in any Trainer."""
